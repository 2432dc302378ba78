"""Arrays as Arrow columns: as pyarrow itself makes them, in the same memory, and without what it loads for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mneme.rollout_workers.columns import from_column, from_lists, to_column, to_lists

ARRAYS = {
    "numbers": np.arange(5),
    "halves": np.array([0.5, np.nan, np.inf], np.float16),
    "none": np.zeros(0, np.int32),
    "flags": np.array([True, False]),
    "matrices": np.arange(6, dtype=np.float32).reshape(2, 3),
    "thin": np.ones((1, 5, 1), np.uint8),
    "reversed": np.arange(24.0).reshape(2, 3, 4)[:, ::-1],
}


def field(array: np.ndarray, column: pa.Array) -> pa.Field:
    return pa.field("x", column.type, metadata={"dtype": array.dtype.name})


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_column_is_what_pyarrow_makes_and_comes_back(array: np.ndarray) -> None:
    column = to_column(array)
    plain = array.astype(np.uint8) if array.dtype == bool else np.ascontiguousarray(array)
    expected = pa.array(plain) if array.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(plain)
    assert column.type == expected.type
    assert str(column) == str(expected)
    back = from_column(column, field(array, column))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_neither_way_copies() -> None:
    for array in (ARRAYS["numbers"], ARRAYS["matrices"]):
        column = to_column(array)
        assert np.shares_memory(from_column(column, field(array, column)), array)
    array, counts_B = np.arange(12.0).reshape(3, 4), np.array([2, 0, 1])
    lists = to_lists(array, counts_B)
    assert lists.to_pylist() == [[*range(8)], [], [*range(8, 12)]]
    assert np.shares_memory(from_lists(lists, field(array, lists), counts_B, (4,)), array)
    np.testing.assert_array_equal(from_lists(lists[1:], field(array, lists), counts_B[1:], (4,)), array[2:])


@pytest.mark.parametrize("column", [pa.array([1, None]), pa.array([True]), pa.array(["a"]), pa.array([[1]])], ids=str)
def test_a_column_that_is_no_array_is_refused(column: pa.Array) -> None:
    with pytest.raises(pa.ArrowException):
        from_column(column, pa.field("x", column.type))


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys, numpy as np, pyarrow as pa;"
        "from mneme.rollout_workers.columns import from_column, from_lists, to_column, to_lists;"
        "columns = [to_column(np.ones(3)), to_column(np.ones((3, 2))), to_lists(np.ones(3), np.array([1, 2]))];"
        "batch = pa.record_batch(columns[:2], names=['a', 'b']);"
        "[from_column(column, pa.field('x', column.type)) for column in batch.columns];"
        "from_lists(columns[2], pa.field('x', columns[2].type), np.array([1, 2]), ());"
        "assert not {'pandas', 'pyarrow.compute'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
