"""Numbers that an environment says of an episode in the info that ends it.

Legend: B environments, E episodes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class FinalNumbers:
    """Gathers numbers from the infos with which episodes end.

    Args:
        names: keys of the info; "outer.inner" is a key inside another's.
        next_step: whether the environment resets in the step after an episode's last, whose info then is the
            episode's; if it resets in the same step, the episode's is `final_info`, and without that nothing is said.
    """

    def __init__(self, names: Sequence[str], next_step: bool) -> None:
        self.names, self._next_step = tuple(names), next_step
        self._told: dict[str, list[np.ndarray]] = {name: [] for name in self.names}

    def add(self, info: Mapping[str, Any], ended_B: np.ndarray) -> None:
        """Take what a step's info says of the episodes that ended in it, bool [B]; what is no number is left out."""
        final = info if self._next_step else info.get("final_info")
        for name in self.names:
            column, said_B = _column(final, name.split("."))
            if column.shape == ended_B.shape and column.dtype.kind in "biuf":
                self._told[name].append(column[ended_B & said_B].astype(np.float64))

    def take(self) -> dict[str, np.ndarray]:
        """What was gathered since this was last asked, float64 [E] a name, none of a name that nothing was said of."""
        taken = {name: np.concatenate([np.empty(0), *parts]) for name, parts in self._told.items()}
        self._told = {name: [] for name in self.names}
        return taken


def _column(info: Any, path: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A vector environment's values [B] under a path, and where they were said, bool [B]; empty if there are none."""
    said_B: Any = True
    for key in path:
        if not isinstance(info, Mapping) or key not in info:
            return np.empty(0), np.empty(0, np.bool_)
        said_B = said_B & np.asarray(info.get(f"_{key}", True), np.bool_)
        info = info[key]
    column = np.asarray(info)
    return column, np.broadcast_to(said_B, column.shape[:1])
