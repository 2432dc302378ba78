"""A report's pictures: learning curves, performance profiles, probabilities of improvement, success by horizon."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from mneme.experiments.report.groups import Comparison
from mneme.experiments.report.records import Curve, Record
from mneme.experiments.report.statistics import (
    Array,
    Estimate,
    interquartile_curve,
    interquartile_mean,
    performance_profile,
)
from mneme.reporting.curves import GREY, INK, picture, plain_numbers, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 3  # evaluations of every run, for curves of them
_STEPS = 100  # of a curve
_THRESHOLDS = 61  # of a profile
_COLUMNS = 3  # of panels
_LETTERS, _LINES = 48, 3  # of a label; a method that differs in many settings has a longer name
_LINE, _BETWEEN = 0.15, 0.17  # inches of height for a label's line, and between two labels

Pair = tuple[str, str]


def colours(methods: Sequence[str]) -> dict[str, Any]:
    """A colour for each method, the same in every picture."""
    import matplotlib as mpl

    shades = mpl.colormaps["tab10" if len(methods) <= 10 else "tab20"]
    return {method: shades(number % shades.N) for number, method in enumerate(methods)}


def label_of(method: str) -> str:
    """A method's name in a few short lines; whole it stands in the tables."""
    return fill(method, _LETTERS, max_lines=_LINES, placeholder=" …", break_on_hyphens=False)


def _height(labels: Sequence[str]) -> float:
    return sum(_BETWEEN + _LINE * (1 + label.count("\n")) for label in labels)


def draw_curves(comparison: Comparison, path: Path) -> str:
    """Draw a panel a task, a line a method: the interquartile mean over seeds, and its interval.

    A run that ended early stands at its last value from then on.

    Returns:
        The figure that is drawn, in words.
    """
    records = [record for cell in comparison.cells for record in cell.records]
    evaluated = all(len(record.evaluations.get(comparison.score, ())) >= _LEAST for record in records)
    key = "success" if all("success" in record.training for record in records) else "return"
    what = f"{comparison.score} in evaluations" if evaluated else f"{key} of training episodes"

    def curve_of(record: Record) -> Curve:
        return record.evaluations[comparison.score] if evaluated else record.training.get(key, [])

    shade = colours(comparison.methods)
    columns = min(_COLUMNS, len(comparison.tasks))
    lines = -(-len(comparison.tasks) // columns)
    with picture(path, max(6.5, 4.2 * columns + 0.4), 3.0 * lines + 0.9) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, task in zip(panels, comparison.tasks, strict=False):
            for method in comparison.methods:
                cell = comparison.cell(task, method)
                curves = [curve for record in cell.records if (curve := curve_of(record))] if cell else []
                if curves:
                    _curve(axes, curves, shade[method], method)
            axes.set_title(task, fontsize=8)
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
            axes.tick_params(labelsize=7)
        for axes in panels[len(comparison.tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("environment steps", fontsize=8)
        figure.supylabel(what, fontsize=8)
        _legend(figure, shade)
    return what


def _curve(axes: "Axes", curves: Sequence[Curve], colour: Any, method: str) -> None:
    first, last = (pick(curve[end][0] for curve in curves) for pick, end in ((max, 0), (max, -1)))
    steps = np.linspace(first, last, _STEPS)
    values = np.array([np.interp(steps, *np.array(curve, np.float64).T) for curve in curves])
    middle, low, high = interquartile_curve(values)
    axes.plot(steps, middle, color=colour, linewidth=1.6, label=method)
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)


def _legend(figure: Any, shade: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    if len(shade) > 1:
        handles = [Line2D([], [], color=colour, label=label_of(method)) for method, colour in shade.items()]
        each = 0.7 + 0.07 * max(len(line) for method in shade for line in label_of(method).splitlines())  # inches
        columns = max(1, int(figure.get_figwidth() / each))
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8)


def draw_profiles(comparison: Comparison, tasks: Sequence[str], path: Path) -> None:
    """Draw each method's interquartile mean over tasks, and the share of its runs above each score, with intervals."""
    shade = colours(comparison.methods)
    scores = {method: comparison.scores(method, tasks) for method in comparison.methods}
    every = np.concatenate([sample for samples in scores.values() for sample in samples])
    low, high = float(min(every.min(), 0.0)), float(max(every.max(), 1.0 if every.max() <= 1 else every.max()))
    thresholds = np.linspace(low, high, _THRESHOLDS)
    labels = [label_of(method) for method in scores]
    with picture(path, 9.5, 1.6 + max(2.2, _height(labels))) as figure:
        left, right = figure.subplots(1, 2)
        for place, (method, samples) in enumerate(reversed(list(scores.items()))):
            found = interquartile_mean(samples)
            left.plot(found.value, place, "o", color=shade[method])
            left.hlines(place, *_ends(found), color=shade[method], linewidth=3, alpha=0.45)
            share, below, above = performance_profile(samples, thresholds)
            right.plot(thresholds, share, color=shade[method], label=method)
            right.fill_between(thresholds, below, above, color=shade[method], alpha=0.15, linewidth=0)
        left.set_yticks(range(len(scores)), labels[::-1], fontsize=8)
        left.set(ylim=(-0.6, len(scores) - 0.4), xlabel=f"interquartile mean of {comparison.score}")
        right.set(ylim=(-0.02, 1.02), xlabel=comparison.score, ylabel="share of runs above")


def draw_improvements(found: Mapping[Pair, Estimate], path: Path) -> None:
    """Draw for each pair of methods how probably a run of the first scores more than one of the second."""
    labels = [_pair(label_of(one), label_of(other)) for one, other in found]
    with picture(path, 7.0, 1.0 + _height(labels)) as figure:
        axes = figure.subplots()
        for place, (_, estimate) in enumerate(reversed(list(found.items()))):
            axes.plot(estimate.value, place, "o", color=INK)
            axes.hlines(place, *_ends(estimate), color=INK, linewidth=3, alpha=0.35)
        axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(found)), labels[::-1], fontsize=8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(found) - 0.4), xlabel="probability of improvement")


def _pair(one: str, other: str) -> str:
    return f"{one}  above  {other}" if len(one) + len(other) <= _LETTERS else f"{one}\nabove  {other}"


def _ends(estimate: Estimate) -> tuple[float, float]:
    known = np.isfinite(estimate.low)
    return (estimate.low, estimate.high) if known else (estimate.value, estimate.value)


def draw_horizons(points: Mapping[Pair, Sequence[tuple[int, Array]]], methods: Sequence[str], path: Path) -> None:
    """Draw success against the horizon.

    Args:
        points: by environment and method, horizons and the success of each seed at them.
        methods: all that there are, for their colours.
        path: of the picture.
    """
    shade = colours(methods)
    environments = list(dict.fromkeys(environment for environment, _ in points))
    with picture(path, max(6.5, 4.6 * len(environments) + 0.4), 3.4) as figure:
        panels = figure.subplots(1, len(environments), squeeze=False, sharey=True).ravel()
        for axes, environment in zip(panels, environments, strict=True):
            for (other, method), found in points.items():
                if other == environment:
                    horizons = [horizon for horizon, _ in found]
                    middle = [interquartile_mean([successes]).value for _, successes in found]
                    axes.plot(horizons, middle, "-", color=shade[method], label=method)
                    for horizon, successes in found:
                        axes.plot([horizon] * len(successes), successes, "o", color=shade[method], markersize=3)
            axes.set(xscale="log", ylim=(-0.03, 1.03))
            axes.set_title(environment, fontsize=8)
            plain_numbers(axes.xaxis)
        figure.supxlabel("horizon at which it was evaluated; points are seeds", fontsize=8)
        figure.supylabel("success", fontsize=8)
        _legend(figure, shade)
