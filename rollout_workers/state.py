"""What the parts of a run give to a checkpoint and take from it: arrays by name."""

from collections.abc import Mapping

import numpy as np

State = dict[str, np.ndarray]


def under(prefix: str, state: Mapping[str, np.ndarray]) -> State:
    """The part of a state whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
