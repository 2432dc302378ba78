"""`mneme suite horizons`: controllers trained at one horizon, evaluated at others, up to a hundred thousand steps."""

from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from mneme.controllers import CONTROLLERS
from mneme.experiments.horizons import horizons_of, keep_horizons
from mneme.experiments.suite.contest import Contest, Measurement
from mneme.experiments.suite.results import Document, replace_file
from mneme.experiments.suite.table import in_columns
from mneme.reporting.curves import GREY, INK, picture, plain_numbers
from mneme.reporting.display import NOTHING

HORIZONS = (32, 64, 128, 256, 1024, 4096, 16384, 100_000)
_EPISODES = 128  # at each
_HELD = 0.99  # success that counts as held


class _HorizonMeasurement(Measurement):
    """Evaluates what a run has come to at every horizon."""

    def result(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        found = horizons_of(self.path, HORIZONS, episodes=_EPISODES, num_envs=_EPISODES)
        keep_horizons(found, self.path)
        return {
            "trained_at": found.trained,
            "by_horizon": [
                [point.horizon, point.evaluation.success_rate, *(point.evaluation.success_interval or ())]
                for point in found.points
            ],
        }


def _rows(document: Document) -> Iterator[tuple[str, ...]]:
    """A row a controller: the success of each seed at each horizon, in percent."""
    for task, controller in dict.fromkeys((run["task"], run["controller"]) for run in document["runs"]):
        runs = [run for run in document["runs"] if (run["task"], run["controller"]) == (task, controller)]
        by_horizon = [{horizon: success for horizon, success, *_ in run.get("by_horizon", ())} for run in runs]
        cells = [
            ", ".join(f"{100 * found[horizon]:.0f}" if horizon in found else NOTHING for found in by_horizon)
            for horizon in HORIZONS
        ]
        solved = sum(run["solved"] for run in runs)
        held = ", ".join(f"{_held(run):,}" for run in runs if "by_horizon" in run)
        yield task, controller, f"{solved} of {len(runs)}", *cells, held


def _held(run: Mapping[str, Any]) -> int:
    """The longest horizon up to which a run holds, from the one that it was trained at on; 0 where not even there."""
    longer = ((horizon, success) for horizon, success, *_ in run["by_horizon"] if horizon >= run["trained_at"])
    return max((horizon for horizon, _ in takewhile(lambda point: point[1] >= _HELD, longer)), default=0)


def as_markdown(document: Document) -> str:
    """The table in columns of one width."""
    headings = ("task", "controller", "solved", *(f"{horizon:,}" for horizon in HORIZONS), f"holds {_HELD:g} up to")
    return in_columns((headings, *_rows(document)))


def _report(document: Document, folder: Path) -> None:
    replace_file(folder / "table.md", as_markdown(document))
    if any("by_horizon" in run for run in document["runs"]):
        draw(document, folder / "horizons.png")


def draw(document: Document, path: Path) -> None:
    """Write a picture: success against the horizon, a panel a controller, a line a seed."""
    import matplotlib as mpl

    runs: list[Mapping[str, Any]] = [run for run in document["runs"] if run.get("by_horizon")]
    kinds = list(dict.fromkeys(run["controller"] for run in runs))
    columns = min(5, len(kinds))
    lines = -(-len(kinds) // columns)
    with picture(path, max(5.0, 2.4 * columns), 2.1 * lines + 0.6, dpi=110) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.8, 1 + max(run["seed"] for run in runs)))
        for axes, kind in zip(panels, kinds, strict=False):
            for run in (run for run in runs if run["controller"] == kind):
                horizons, successes = np.transpose([point[:2] for point in run["by_horizon"]])
                axes.plot(horizons, successes, "o-", markersize=2.5, color=shades[run["seed"]])
                axes.axvline(run["trained_at"], color=INK, linestyle="--", linewidth=0.8)
                bound = document["tasks"][run["task"]]["memoryless_return"]
                axes.axhline(bound, color=GREY, linestyle=":", linewidth=0.8)
            axes.set(xscale="log", ylim=(-0.03, 1.03))
            plain_numbers(axes.xaxis)
            axes.set_title(kind, fontsize=8)
            axes.tick_params(labelsize=7)
        for axes in panels[len(kinds) :]:
            axes.set_visible(False)
        figure.supxlabel("horizon at which it is evaluated; dashed: in training; dotted: without memory", fontsize=8)
        figure.supylabel("success", fontsize=8)


HORIZONS_CONTEST = Contest(
    tasks={"delayed_cue@64": ()},
    controllers=tuple(kind for kind in CONTROLLERS if kind != "mlp"),
    variants={"": ()},
    settings=(),
    own_presets=False,
    measurement=_HorizonMeasurement,
    prepare=lambda document, controllers, console: True,
    report=_report,
    as_markdown=as_markdown,
)
"""Every controller with a memory, trained on delayed cue with a delay of 64."""
