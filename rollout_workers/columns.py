"""Arrays as Arrow columns of one row a sequence, and back, without a copy either way.

What has an entry for some steps only is a column of flat lists of numbers, which Parquet and every reader of it know.

Legend: B rows, F entries of all rows together.
"""

import math

import numpy as np
import pyarrow as pa


def _plain(array: np.ndarray) -> np.ndarray:
    # Arrow packs booleans into bits, which numpy cannot view: flags travel as bytes.
    return np.ascontiguousarray(array.view(np.uint8) if array.dtype == np.bool_ else array)


def _viewed(array: np.ndarray, field: pa.Field) -> np.ndarray:
    return array.view(np.bool_) if (field.metadata or {}).get(b"dtype") == b"bool" else array


def to_column(array: np.ndarray) -> pa.Array:
    """[B, ...] as a column of one number or tensor a row, in the same memory where it lies in order."""
    array = _plain(array)
    return pa.array(array) if array.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(array)


def from_column(column: pa.Array, field: pa.Field) -> np.ndarray:
    """The array that `to_column` was given, as a view."""
    tensor = isinstance(column, pa.FixedShapeTensorArray)
    return _viewed(column.to_numpy_ndarray() if tensor else column.to_numpy(zero_copy_only=True), field)


def to_lists(array: np.ndarray, counts_B: np.ndarray) -> pa.Array:
    """[F, ...] as one list of numbers a row, of which row b takes the next `counts_B[b]` entries."""
    ends_B = counts_B.cumsum() * math.prod(array.shape[1:])
    return pa.LargeListArray.from_arrays(pa.array(np.append(0, ends_B)), pa.array(_plain(array).reshape(-1)))


def from_lists(column: pa.Array, field: pa.Field, counts_B: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array [F, *shape] that `to_lists` was given, as a view.

    Raises:
        ValueError: the lists are not as long as `counts_B` says.
    """
    numbers_B = counts_B * math.prod(shape)
    if column.null_count or not np.array_equal(column.value_lengths().to_numpy(), numbers_B):
        raise ValueError(
            f"{field.name} holds lists of {column.value_lengths().to_pylist()} numbers; its flags ask for "
            f"{numbers_B.tolist()}"
        )
    return _viewed(column.flatten().to_numpy(zero_copy_only=True), field).reshape(-1, *shape)
