"""Contests: the questions that a suite can be asked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from mneme.callbacks import Callback, Progress
from mneme.configuration.presets import PRESETS, find_preset
from mneme.controllers import CONTROLLERS
from mneme.distributed.config import ConfigError
from mneme.experiments.suite.results import Document, replace_file
from mneme.experiments.suite.table import as_markdown


class Measurement(Callback):
    """Follows one run of a suite, for what is kept of it besides its result."""

    path: Path | None = None
    """The newest checkpoint."""

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        self.path = path

    def result(self) -> dict[str, Any]:
        """To be kept with the run's result, once it has ended."""
        return {}


class Contest(NamedTuple):
    """What is compared, on which tasks, and what is told of it."""

    tasks: Mapping[str, Sequence[str]]  # by name, the settings that make it of its preset
    controllers: Sequence[str]  # kinds, unless others are named
    variants: Mapping[str, Sequence[str]]  # by name, the settings that are compared besides controllers
    settings: Sequence[str]  # of every run
    own_presets: bool  # whether a task may be any preset
    measurement: Callable[[], Measurement]
    prepare: Callable[[Document, Sequence[str], Console], bool]  # before the runs: measure what no run has to; done?
    report: Callable[[Document, Path], None]  # writes what people read into a folder
    as_markdown: Callable[[Document], str]  # the table that is printed

    def preset(self, task: str, controller: str) -> Path:
        """The preset of a task, the controller's own where there is one.

        Raises:
            ConfigError: there is none.
        """
        if task not in self.tasks and not self.own_presets:
            raise ConfigError(f"--tasks names {task}; there are {', '.join(self.tasks)}")
        name = task.partition("@")[0]
        shipped = (PRESETS / f"{name}_{controller}.yaml", PRESETS / f"{name}.yaml")
        return next(filter(Path.exists, shipped), None) or find_preset(task)


def _write_table(document: Document, folder: Path) -> None:
    replace_file(folder / "table.md", as_markdown(document))


CONTROLLERS_CONTEST = Contest(
    tasks=dict.fromkeys(("delayed_cue", "copy_memory", "associative_recall", "tmaze"), ()),
    controllers=tuple(CONTROLLERS),
    variants={"": ()},
    settings=(),
    own_presets=True,
    measurement=Measurement,
    prepare=lambda document, controllers, console: True,
    report=_write_table,
    as_markdown=as_markdown,
)
"""Every controller on every memory task."""
