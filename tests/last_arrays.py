"""What a run comes to: the arrays of its last checkpoint, which another run is to have to the bit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mneme.storage.checkpoint import list_checkpoints, load_checkpoint


def last_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a run's last checkpoint, by part and name."""
    loaded = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])
    return {f"{part}/{name}": array for part, arrays in loaded.arrays.items() for name, array in arrays.items()}


def assert_same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
