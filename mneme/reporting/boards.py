"""TensorBoard and Weights & Biases: boards that show a run besides MLflow, each as a callback."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from mneme.callbacks import Callback, Look, Outcome, Progress, RunStart
from mneme.distributed.config import ConfigError
from mneme.reporting.meter import evaluation_row
from mneme.rollout_workers import Evaluation

_log = logging.getLogger(__name__)


class Board(Callback):
    """Shows the metrics of docs/metrics.md, by their names, over environment steps. One that fails is told once and
    costs what it would have shown, never the run.

    Raises:
        ConfigError: its package is not installed; the sentence names it.
    """

    name: str
    package: str

    def __init__(self) -> None:
        if find_spec(self.package) is None:
            raise ConfigError(
                f"{self.name} needs the package {self.package}, which is not installed: pip install {self.package}, "
                f"or leave {self.name} out"
            )
        self._start: RunStart | None = None
        self._failed = False

    def on_start(self, run: RunStart) -> None:
        """Remember the run, whose earlier metrics stand only once it begins."""
        self._start, self._failed = run, False

    def on_begin(self, progress: Progress) -> None:
        """Open the board."""
        run = self._start
        if run is not None:
            self._attempt(lambda: self.open(run, progress))

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Show an update."""
        self._show(progress, metrics)

    def on_evaluation(self, progress: Progress, evaluation: Evaluation, look: Look) -> None:
        """Show an evaluation."""
        self._show(progress, evaluation_row(evaluation, look.prefix))

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Close the board, also one that has failed: what stays open would take what another run shows."""
        if self._failed:
            with suppress(Exception):
                self.close(outcome)
        self._attempt(lambda: self.close(outcome))

    @abstractmethod
    def open(self, run: RunStart, progress: Progress) -> None:
        """Begin, or go on where a resumed run does."""

    @abstractmethod
    def show(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Show finite metrics after so many environment steps."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Send what is left; it may never have been opened."""

    def _show(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._attempt(lambda: self.show(progress.steps, finite))

    def _attempt(self, act: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            act()
        except Exception as error:
            self._failed = True
            _log.warning(f"{self.name} failed ({type(error).__name__}: {error}): training goes on without it")


class TensorBoard(Board):
    """Writes TensorBoard's event files, which `tensorboard --logdir runs` shows for all runs at once.

    Args:
        folder: where they go; unset: `tensorboard` in the run's folder.
    """

    name, package = "tensorboard", "tensorboardX"

    def __init__(self, folder: Path | str | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._writer: Any = None

    def open(self, run: RunStart, progress: Progress) -> None:
        """Begin a file, before which a resumed run's later events do not count."""
        from tensorboardX import SummaryWriter

        folder = run.folder / "tensorboard" if self._folder is None else Path(self._folder) / run.folder.name
        purge = progress.steps + 1 if run.resumed else None
        own = f".{uuid4().hex[:8]}"  # a file's name has the second, in which a short run may end and be resumed
        self._writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=own)
        settings = yaml.safe_dump(_configuration(run), sort_keys=False)
        self._writer.add_text("config", f"```yaml\n{settings}```", progress.steps)

    def show(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Write them."""
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, steps)

    def close(self, outcome: Outcome) -> None:
        """Write the file out."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Wandb(Board):
    """Sends the run to Weights & Biases, under the run's own key, so that a resumed run goes on there.

    What a resumed run had sent after its checkpoint stays there beside what it sends again. `WANDB_MODE=offline` keeps
    all of it on this machine, in `wandb` in the run's folder.

    Args:
        project: unset: `tracking.experiment`.
        settings: further arguments of `wandb.init`.
    """

    name, package = "wandb", "wandb"

    def __init__(self, project: str | None = None, **settings: Any) -> None:
        super().__init__()
        self._project, self._settings = project, settings
        self._run: Any = None

    def open(self, run: RunStart, progress: Progress) -> None:
        """Begin the run there, or go on with it."""
        import wandb

        given = {
            "project": self._project or run.config.tracking.experiment,
            "name": run.folder.name,
            "id": run.key,
            "resume": "allow",
            "dir": str(run.folder),
            "config": _configuration(run),
        }
        self._run = wandb.init(**given | self._settings)
        self._run.define_metric("*", step_metric="env_steps")

    def show(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Send them."""
        if self._run is not None:
            self._run.log({"env_steps": steps, **metrics})

    def close(self, outcome: Outcome) -> None:
        """Wait until all of it is sent."""
        if self._run is not None:
            self._run.finish(exit_code=int(outcome == "failed"))
            self._run = None


def _configuration(run: RunStart) -> dict[str, Any]:
    """The configuration, without the password of MLflow's store."""
    return run.config.without_password().to_dict()


BOARDS: Mapping[str, type[TensorBoard] | type[Wandb]] = {board.name: board for board in (TensorBoard, Wandb)}
"""By their names in `tracking.also`."""


def boards_of(names: Iterable[str]) -> list[Callback]:
    """The boards of these names.

    Raises:
        ConfigError: the package of one is not installed.
    """
    return [BOARDS[name]() for name in names]
