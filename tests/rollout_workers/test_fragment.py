"""Fragments: Arrow round trip without copies, Parquet, and refusal of what must not reach a loss."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_workers import Collector, Fragment, FragmentError


@pytest.fixture(params=["mlp", "gru", "lstm"])
def fragment(request: pytest.FixtureRequest, counting_collector: Callable[..., Collector]) -> Fragment:
    return counting_collector(kind=request.param).collect(weights_version=0)[0]


def assert_equal(a: Fragment, b: Fragment) -> None:
    for field in fields(Fragment):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, dict):
            assert x.keys() == y.keys()
            for name in x:
                np.testing.assert_array_equal(x[name], y[name])
        elif field.name == "carry_stride":
            assert x == y
        else:
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


def test_arrow_round_trip_keeps_every_bit(fragment: Fragment) -> None:
    batch = fragment.to_arrow()
    assert batch.num_rows == fragment.lanes
    assert_equal(fragment, Fragment.from_arrow(batch))


def test_reading_copies_nothing(fragment: Fragment) -> None:
    batch = fragment.to_arrow()
    again = Fragment.from_arrow(batch)
    for name, array in (("observation.observation", again.observations["observation"]), ("resets", again.resets)):
        storage = batch.column(name).storage.flatten().buffers()[1]
        assert storage.address <= array.ctypes.data < storage.address + storage.size
        assert not array.flags.owndata


def test_parquet_round_trip(fragment: Fragment, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_batches([fragment.to_arrow()]), tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert_equal(fragment, Fragment.from_arrow(table.combine_chunks().to_batches()[0]))


def test_a_good_fragment_passes(fragment: Fragment) -> None:
    fragment.validate()


@pytest.mark.parametrize("column", ["rewards", "log_probs", "values"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(fragment: Fragment, column: str, value: float) -> None:
    array = getattr(fragment, column).copy()
    array[4, 7] = value
    remedy = "check the environment" if column == "rewards" else "lower .*mneme check"
    with pytest.raises(FragmentError, match=rf"column {column} .*lane 4.* holds {value} at index \(4, 7.*; {remedy}"):
        replace(fragment, **{column: array}).validate()


@pytest.mark.parametrize(("group", "prefix"), [("carries", "carry"), ("observations", "observation")])
def test_a_named_array_that_is_not_finite_is_named(
    counting_collector: Callable[..., Collector], group: str, prefix: str
) -> None:
    fragment = counting_collector(kind="gru").collect()[0]
    name = next(iter(getattr(fragment, group)))
    array = getattr(fragment, group)[name].copy()
    array[1, 2] = np.nan
    with pytest.raises(FragmentError, match=rf"column {prefix}.{name}"):
        replace(fragment, **{group: {name: array}}).validate()


def test_every_kind_of_array_comes_back_with_its_type(counting_collector: Callable[..., Collector]) -> None:
    fragment = counting_collector().collect()[0]
    B, T = fragment.lanes, fragment.length
    rng = np.random.default_rng(0)
    parts = {
        "image": rng.integers(0, 256, (B, T + 1, 4, 5, 3), dtype=np.uint8),
        "action_mask": rng.integers(0, 2, (B, T + 1, 7)).astype(np.bool_),
        "count": rng.integers(0, 9, (B, T + 1, 1)),
    }
    fragment = replace(fragment, observations=parts, actions=rng.random((B, T, 2), dtype=np.float32))
    fragment.validate()
    assert_equal(fragment, Fragment.from_arrow(fragment.to_arrow()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (lambda f: {"rewards": f.rewards[:, :-1]}, "column rewards .* has shape"),
        (
            lambda f: {"observations": {"x": f.observations["observation"][:, :-1]}},
            "column observation.x .* has shape",
        ),
        (lambda f: {"values": f.values.T}, "column values .* has shape"),
        (lambda f: {"resets": np.zeros_like(f.resets)}, "reset flags .* disagree"),
        (lambda f: {"valid": ~f.valid}, "reset flags .* disagree"),
        (lambda f: {"valid": ~f.valid, "resets": np.ones_like(f.resets)}, "no valid step"),
    ],
)
def test_shapes_and_flags_that_disagree_are_refused(
    counting_collector: Callable[..., Collector], changes: Callable[[Fragment], dict[str, Any]], sentence: str
) -> None:
    fragment = counting_collector().collect()[0]
    with pytest.raises(FragmentError, match=sentence):
        replace(fragment, **changes(fragment)).validate()


def test_another_schema_is_refused(counting_collector: Callable[..., Collector]) -> None:
    batch = counting_collector().collect()[0].to_arrow()
    with pytest.raises(FragmentError, match="schema version 99"):
        Fragment.from_arrow(batch.replace_schema_metadata({"schema_version": "99", "carry_stride": "1"}))
    with pytest.raises(FragmentError, match="lacks columns \\['rewards'\\]"):
        Fragment.from_arrow(batch.drop_columns(["rewards"]).replace_schema_metadata(batch.schema.metadata))
