"""The picture of a sweep: every configuration as a line through its settings to what came of it, and what mattered."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mneme.experiments.sweep.importance import importances
from mneme.experiments.sweep.plan import shown
from mneme.experiments.sweep.results import Configuration, SweepResults
from mneme.experiments.sweep.table import short_names
from mneme.reporting.curves import BLUE, GREY, INK, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE = 20  # the ratio of two positive bounds from which on an axis is logarithmic
_TICKS = 8
_EDGE = 0.5  # of an axis with one value alone


class _Scale:
    """The heights, from 0 to 1, of the values of one axis, and which of them are named."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        self._kinds = list(dict.fromkeys(map(shown, values)))
        if numbers:
            low, high = min(values), max(values)
            self._log = low > 0 and high / low >= _WIDE
            self._low, self._high = self._bent(low), self._bent(high)
            distinct = sorted(set(values))
            self.ticks = distinct if len(distinct) <= _TICKS else [low, high]
        else:
            self._log, self._low, self._high = False, 0.0, float(len(self._kinds) - 1)
            self.ticks = list(values)
        self._numbers = numbers

    def _bent(self, value: float) -> float:
        return math.log(value) if self._log else float(value)

    def __call__(self, value: Any) -> float:
        place = self._bent(value) if self._numbers else float(self._kinds.index(shown(value)))
        return (place - self._low) / (self._high - self._low) if self._high > self._low else _EDGE


def draw(results: SweepResults, path: Path, title: str) -> None:
    """Write the picture, of configurations that have a value.

    Raises:
        OSError: it cannot be written.
    """
    found = [each for each in results.configurations if math.isfinite(each.value(results.metric))]
    if not found:
        return
    space = results.document["sweep"]["space"]
    shares = importances(found, results.metric, space)
    with picture(path, 2.2 + 1.7 * len(space) + (3 if shares else 0), 4.2) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        names: list[Any] = [["lines", "lines", "shares"]] if shares else [["lines"]]
        axes = figure.subplot_mosaic(names)
        _lines(axes["lines"], found, list(space), results)
        if shares:
            _shares(axes["shares"], shares)


def _lines(axes: "Axes", found: Sequence[Configuration], keys: Sequence[str], results: SweepResults) -> None:
    import matplotlib as mpl

    metric, best = results.metric, results.best
    columns = [[each.point[key] for each in found] for key in keys] + [[each.value(metric) for each in found]]
    scales = [_Scale(column) for column in columns]
    shade = mpl.colormaps["viridis"]
    for row, each in zip(zip(*columns, strict=True), found, strict=True):
        heights = [scale(value) for scale, value in zip(scales, row, strict=True)]
        chosen = best is not None and each.number == best.number
        axes.plot(
            range(len(heights)), heights, color=shade(0.9 * heights[-1]), linewidth=2.6 if chosen else 1.1,
            alpha=1.0 if chosen else 0.7, marker="o", markersize=3, zorder=4 if chosen else 3,
        )  # fmt: skip
    for place, (scale, column) in enumerate(zip(scales, columns, strict=True)):
        axes.axvline(place, color=GREY, linewidth=1, zorder=1)
        for tick in dict.fromkeys(scale.ticks if place < len(keys) else (min(column), max(column))):
            axes.annotate(
                shown(tick), (place, scale(tick)), (5, 0), textcoords="offset points", va="center", fontsize=8,
                color=INK, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}, zorder=5,
            )  # fmt: skip
    axes.set(xticks=range(len(scales)), ylim=(-0.06, 1.06), yticks=[])
    axes.set_xticklabels([*short_names(keys), metric])
    axes.grid(visible=False)
    axes.set_xlim(-0.2, len(scales) - 0.5)
    axes.spines["left"].set_visible(False)
    axes.set_title("each configuration; the best is bold")


def _shares(axes: "Axes", shares: Mapping[str, float]) -> None:
    names = list(shares)[::-1]
    axes.barh(short_names(names), [shares[name] for name in names], color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_axisbelow(True)
    axes.set_title("share of the differences")
