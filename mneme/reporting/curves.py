"""The learning-curve picture that a run leaves behind. Matplotlib is imported only when one is drawn."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mneme.callbacks import Callback, Outcome, Progress, RunStart
from mneme.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

BLUE, GREEN, GREY, INK = "#2563a8", "#1a7f4b", "#8a8f98", "#22262b"
SMOOTHING = 40  # the running mean spans this fraction of the updates
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.ymargin": 0.08,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


@contextmanager
def picture(path: Path, width: float, height: float, dpi: int = 120) -> Iterator["Figure"]:
    """A figure of so many inches in our style, which is written to `path` when the block ends.

    Ours on matplotlib's defaults: a matplotlibrc, which may lie in the present folder, has no say.

    Raises:
        OSError: it cannot be written.
        ValueError: the file's ending names no kind of picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():  # a bare Figure draws with Agg and leaves pyplot's global state alone
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def plain_numbers(axis: "Axis") -> None:
    """Label a logarithmic axis with plain numbers at its powers of ten, as the style parses no formulas."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def check_picture(path: Path) -> None:
    """Refuse a file whose ending names no kind of picture.

    Raises:
        ValueError: it names none.
    """
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise ValueError(f"{path} does not end in the name of a kind of picture; let it end in .png or .pdf")


class LearningCurve(Callback):
    """Draws what a run has learned into its folder once it is over."""

    def on_start(self, run: RunStart) -> None:
        """Keep what the picture says besides the metrics."""
        self._run = run

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Draw, unless the run failed; a disk that is full costs the picture alone."""
        if outcome == "failed":
            return
        config, facts, folder = self._run.config, self._run.blueprint.facts, RunFolder(self._run.folder)
        references = (
            {
                "optimal": facts.optimal_return,
                "without memory": facts.memoryless_return,
                "chance": facts.chance_return,
            }
            if facts
            else {}
        )
        title = f"{config.env.id}, {config.policy.controller.kind}, {config.learner.mode}"
        try:
            if folder.curve.is_symlink():  # which would be drawn over what it leads to
                folder.curve.unlink()
            draw_learning_curve(folder.history(), folder.curve, title, references)
        except OSError as error:
            _log.warning(f"the learning curve could not be drawn: {error}")


def draw_learning_curve(
    history: Sequence[Mapping[str, float]],
    path: Path,
    title: str,
    references: Mapping[str, float],
) -> None:
    """Write a PNG of return and success rate, and of KL, entropy and speed, against environment steps.

    Args:
        history: rows of metrics, each with "step"; what a row lacks, or is not finite, is a gap.
        path: the PNG; its folder is created.
        title: above the picture.
        references: returns to compare with, drawn as lines under their names.

    Raises:
        OSError: the picture cannot be written.
    """
    with picture(path, 10, 6, dpi=150) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        with_success = any("success" in row or "evaluation/success" in row for row in history)
        above: list[Any] = ["return"] * 3 + ["success"] * 3 if with_success else ["return"] * 6
        below: list[Any] = ["kl", "kl", "entropy", "entropy", "speed", "speed"]
        axes = figure.subplot_mosaic([above, below], height_ratios=[1.7, 1])

        _training(axes["return"], history, "return", "return")
        _evaluation(axes["return"], history, "return")
        for value in set(references.values()):
            names = ", ".join(name for name, other in references.items() if other == value)
            axes["return"].axhline(value, color=GREY, linestyle="--", linewidth=1, zorder=1)
            axes["return"].annotate(
                names, (1, value), (-2, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", color=GREY, fontsize=8,
            )  # fmt: skip
        if with_success:
            _training(axes["success"], history, "success", "success rate")
            _evaluation(axes["success"], history, "success")
            axes["success"].set_ylim(-0.03, 1.05)
            axes["success"].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        _training(axes["kl"], history, "kl", "KL of an update, old to new")
        _training(axes["entropy"], history, "entropy", "entropy (nats)")
        _training(axes["speed"], history, "steps_per_second", "environment steps per second")
        for name in ("kl", "entropy", "speed"):
            axes[name].set_ylim(bottom=min(0.0, axes[name].get_ylim()[0]))
        axes["speed"].yaxis.set_major_formatter(lambda value, _: short(value))
        for step, reach in _changes(history, "bptt_length"):
            axes["return"].axvline(step, color=GREY, linestyle=":", linewidth=1, zorder=1)
            axes["return"].annotate(
                f"K {reach:,.0f}", (step, 1), (2, -8), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=GREY, fontsize=8,
            )  # fmt: skip
        last = max((row["step"] for row in history), default=1)
        for panel in axes.values():
            panel.set_xlim(0, last * 1.02)
            panel.locator_params(axis="x", nbins=6)
            panel.xaxis.set_major_formatter(lambda value, _: short(value))
            panel.set_axisbelow(True)
        axes["entropy"].set_xlabel("environment steps")
        for name in set(above):
            if axes[name].get_legend_handles_labels()[0]:
                axes[name].legend(fontsize=8)


def _training(panel: "Axes", history: Sequence[Mapping[str, float]], key: str, title: str) -> None:
    """Every update faintly, their running mean on top."""
    panel.set_title(title)
    steps, values = _series(history, key)
    if not len(values):
        return
    span = max(1, len(values) // SMOOTHING)
    if span > 1:
        panel.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    few = "o" if len(values) == 1 else None
    panel.plot(steps, _running_mean(values, span), color=BLUE, linewidth=1.6, marker=few, label="training")


def _evaluation(panel: "Axes", history: Sequence[Mapping[str, float]], key: str) -> None:
    """Greedy evaluations as points, with their confidence intervals where the rows have them."""
    name = f"evaluation/{key}"
    rows = [row for row in history if np.isfinite(row.get(name, np.nan))]
    if not rows:
        return
    steps, values = _series(rows, name)
    low, high = (np.array([row.get(f"{name}_{end}", row[name]) for row in rows]) for end in ("low", "high"))
    panel.errorbar(
        steps,
        values,
        np.abs(np.stack([values - low, high - values])),
        color=GREEN,
        fmt="D",
        markersize=5,
        capsize=3,
        label="greedy evaluation",
        zorder=3,
    )


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[Array, Array]:
    """Steps and values [n] of the rows that have a finite value."""
    rows = [(row["step"], row[key]) for row in history if key in row and np.isfinite(row[key])]
    steps, values = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _changes(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """The steps at which a value became another one, and that value."""
    steps, values = _series(history, key)
    changed = np.flatnonzero(np.diff(values)) + 1
    return list(zip(steps[changed], values[changed], strict=True))


def _running_mean(values: Array, span: int) -> Array:
    """The mean of the last `span` values, of fewer at the beginning; same length as `values`."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - span)
    mean: Array = (total[end] - total[start]) / (end - start)
    return mean


def short(value: float) -> str:
    """A number of steps in few letters, as 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
