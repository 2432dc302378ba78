"""Arrays as Arrow columns of one row a sequence, and back, without a copy either way.

What has an entry for some steps only is a column of flat lists of numbers, which Parquet and every reader of it know.
`pa.array` and `to_numpy` would give the same, but load pandas where it is installed: a quarter of a second in every
process. What lists have besides `offsets` and `values` loads pyarrow.compute.

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


def _numbers(array: np.ndarray) -> pa.Array:
    """[F] as a column in the same memory."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])


def to_column(array: np.ndarray) -> pa.Array:
    """[B, ...] as a column of one number or tensor a row, in the same memory where it lies in order."""
    array = _plain(array)
    numbers, shape = _numbers(array.reshape(-1)), array.shape[1:]
    if array.ndim == 1:
        return numbers
    tensor = pa.fixed_shape_tensor(numbers.type, shape)
    return pa.ExtensionArray.from_storage(tensor, pa.FixedSizeListArray.from_arrays(numbers, math.prod(shape)))


def from_column(column: pa.Array, field: pa.Field) -> np.ndarray:
    """The array that `to_column` was given, as a view."""
    tensor = isinstance(column, pa.FixedShapeTensorArray)
    return _viewed(column.to_numpy_ndarray() if tensor else np.from_dlpack(column), field)


def to_lists(array: np.ndarray, counts_B: np.ndarray) -> pa.Array:
    """[F, ...] as one list of numbers a row, of which row b takes the next `counts_B[b]` entries."""
    ends_B = counts_B.cumsum() * math.prod(array.shape[1:])
    return pa.LargeListArray.from_arrays(_numbers(np.append(0, ends_B)), _numbers(_plain(array).reshape(-1)))


def from_lists(column: pa.Array, field: pa.Field, counts_B: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array [F, *shape] that `to_lists` was given, as a view.

    Raises:
        ValueError: the lists are not as long as `counts_B` says.
    """
    numbers_B = counts_B * math.prod(shape)
    offsets = np.from_dlpack(column.offsets)
    if column.null_count or not np.array_equal(np.diff(offsets), numbers_B):
        raise ValueError(
            f"{field.name} holds lists of {column.value_lengths().to_pylist()} numbers; its flags ask for "
            f"{numbers_B.tolist()}"
        )
    numbers = np.from_dlpack(column.values)[offsets[0] : offsets[-1]]
    return _viewed(numbers, field).reshape(-1, *shape)
