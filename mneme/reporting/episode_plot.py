"""The picture of a recorded episode: what was seen, done, earned and remembered. Matplotlib is imported only here.

Legend: L steps, N entries.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mneme.reporting.curves import BLUE, GREEN, GREY, picture
from mneme.rollout_workers import Fragment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ENTRIES = 32  # rows of a heat map
_MOST_LABELS = 16


class Entries(NamedTuple):
    """The rows of a heat map."""

    values_NL: np.ndarray  # float64
    index_N: np.ndarray  # int64, which entries of the whole they are
    size: int  # entries of the whole


def entries_of(array: np.ndarray) -> Entries:
    """[L, ...] by entry and step; where there are more than fit, those of highest variance over time, in order."""
    values_LN = array.reshape(len(array), -1).astype(np.float64)
    index_N = np.sort(np.argsort(-values_LN.var(axis=0), kind="stable")[:_MOST_ENTRIES])
    return Entries(values_LN[:, index_N].T, index_N, values_LN.shape[1])


def draw_episode(episode: Fragment, path: Path, title: str) -> None:
    """Write a PNG of an episode [1, L] over time, with one heat map for each part of the observation and each carry.

    Args:
        episode: with the carry of every step.
        path: the PNG; its folder is created.
        title: above the picture.

    Raises:
        OSError: the picture cannot be written.
        ValueError: the file's ending names no kind of picture.
    """
    parts = {name: entries_of(part[0, :-1]) for name, part in episode.observations.items()}
    actions = entries_of(episode.actions[0])
    carries = {name: entries_of(carry[0]) for name, carry in episode.carries.items()}
    heights = [*map(_height, parts.values()), 1.2, 1.6, *map(_height, carries.values())]
    with picture(path, 10, 1 + sum(heights) + 0.5 * len(heights)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        for panel in panels:
            panel.set_axisbelow(True)
        panels[-1].set_xlabel("step")
        panels[-1].set_xlim(-0.5, episode.length - 0.5)
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        remaining = iter(panels)
        for name, part in parts.items():
            _heat_map(next(remaining), part, name, signed=False)
        _actions(next(remaining), actions, whole=episode.actions.dtype.kind != "f")
        _earnings(next(remaining), episode)
        for name, carry in carries.items():
            _heat_map(next(remaining), carry, f"carry before the step: {name}", signed=True)


def _height(entries: Entries) -> float:
    return 0.5 + 0.06 * len(entries.index_N)


def _heat_map(panel: "Axes", entries: Entries, title: str, *, signed: bool) -> None:
    shown = len(entries.index_N)
    panel.set_title(title if shown == entries.size else f"{title} (the {shown} of {entries.size} that vary most)")
    largest = float(np.abs(entries.values_NL).max()) or 1.0
    low, colours = (-largest, "RdBu_r") if signed else (None, "viridis")
    image = panel.imshow(
        entries.values_NL, aspect="auto", interpolation="nearest", cmap=colours, vmin=low,
        vmax=largest if signed else None,
    )  # fmt: skip
    every = -(-shown // _MOST_LABELS)
    panel.set_yticks(range(0, shown, every), [str(i) for i in entries.index_N[::every]], fontsize=6)
    panel.grid(visible=False)
    panel.figure.colorbar(image, ax=panel, pad=0.01)


def _actions(panel: "Axes", actions: Entries, *, whole: bool) -> None:
    shown = len(actions.index_N)
    panel.set_title(
        "action" if shown == actions.size else f"action (the {shown} of {actions.size} numbers that vary most)"
    )
    for index, values_L in zip(actions.index_N, actions.values_NL, strict=True):
        panel.plot(values_L, ".-", linewidth=0.8, markersize=4, label=str(index))
    if whole:
        panel.set_ylim(actions.values_NL.min() - 0.5, actions.values_NL.max() + 0.5)
        panel.locator_params(axis="y", integer=True, min_n_ticks=1)
    if 1 < shown <= _MOST_LABELS:
        panel.legend(fontsize=6, ncols=shown, loc="upper right")


def _earnings(panel: "Axes", episode: Fragment) -> None:
    panel.set_title("reward and value")
    panel.axhline(0, color=GREY, linewidth=0.8)
    panel.bar(np.arange(episode.length), episode.rewards[0], color=GREEN, label="reward")
    panel.plot(episode.values[0, :-1], color=BLUE, linewidth=1.4, label="value")
    panel.legend(fontsize=8, loc="upper left")
