"""Fragments: Arrow round trip without copies, Parquet, and refusal of what must not reach a loss."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mneme.rollout_workers import Collector, Fragment, FragmentError


@pytest.fixture(params=["mlp", "gru", "lstm"])
def fragment(request: pytest.FixtureRequest, counting_collector: Callable[..., Collector]) -> Fragment:
    return counting_collector(kind=request.param, warm_up=4).collect(weights_version=0)[0]


def assert_equal(a: Fragment, b: Fragment) -> None:
    assert a.carry_stride == b.carry_stride
    x, y = a._columns(), b._columns()
    assert x.keys() == y.keys()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name])
        assert x[name].dtype == y[name].dtype


def test_arrow_round_trip_keeps_every_bit(fragment: Fragment) -> None:
    batch = fragment.to_arrow()
    assert batch.num_rows == fragment.num_envs
    assert_equal(fragment, Fragment.from_arrow(batch))


def test_reading_copies_nothing(fragment: Fragment) -> None:
    batch = fragment.to_arrow()
    again = Fragment.from_arrow(batch)
    final = again.final_observations["observation"]
    assert len(final) > 6
    for name, array in (
        ("observation.observation", again.observations["observation"]),
        ("resets", again.resets),
        ("final.observation", final),
    ):
        column = batch.column(name)
        storage = (column.storage if isinstance(column, pa.ExtensionArray) else column).flatten().buffers()[1]
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


def test_an_observation_whose_square_overflows_is_laid_to_the_environment(fragment: Fragment) -> None:
    observation = fragment.observations["observation"].copy()
    observation[4, 7, 0] = 1e19
    replace(fragment, observations={"observation": observation}).validate()
    observation[4, 7, 0] = -3.4e38
    sentence = (
        r"column observation.observation .*lane 4.* holds -3.[34]\d*e\+38 at index \(4, 7, 0\); check the env.*1.8e"
    )
    with pytest.raises(FragmentError, match=sentence):
        replace(fragment, observations={"observation": observation}).validate()


def test_numbers_of_the_network_may_be_as_large_as_float32_holds(fragment: Fragment) -> None:
    values = fragment.values.copy()
    values[4, 7] = 3.4e38
    replace(fragment, values=values).validate()


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


def test_where_all_is_not_finite_what_the_environment_showed_is_blamed(
    counting_collector: Callable[..., Collector],
) -> None:
    fragment = counting_collector(kind="gru").collect()[0]
    shown, log_probs = fragment.observations["observation"].copy(), fragment.log_probs.copy()
    shown[0, 1:], log_probs[0, 1:] = np.nan, np.nan
    with pytest.raises(FragmentError, match=r"column observation\.observation .*check the environment"):
        replace(fragment, observations={"observation": shown}, log_probs=log_probs).validate()


def test_every_kind_of_array_comes_back_with_its_type(counting_collector: Callable[..., Collector]) -> None:
    fragment = counting_collector().collect()[0]
    B, T = fragment.num_envs, fragment.length
    rng = np.random.default_rng(0)
    parts = {
        "image": rng.integers(0, 256, (B, T + 1, 4, 5, 3), dtype=np.uint8),
        "action_mask": rng.integers(0, 2, (B, T + 1, 7)).astype(np.bool_),
        "count": rng.integers(0, 9, (B, T + 1, 1)),
    }
    finals = {name: part[fragment.cut_short.nonzero()] for name, part in parts.items()}
    fragment = replace(
        fragment, observations=parts, final_observations=finals, actions=rng.random((B, T, 2), dtype=np.float32)
    )
    fragment.validate()
    assert_equal(fragment, Fragment.from_arrow(fragment.to_arrow()))


def finals_of(fragment: Fragment) -> np.ndarray:
    return fragment.final_observations["observation"]


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
        (lambda f: {"rewards": f.rewards.astype(np.float64)}, "column rewards .* type float64; it must be"),
        (lambda f: {"worker": f.worker[:0]}, "column worker of a fragment from an unknown worker has shape"),
        (lambda f: {"actions": f.actions[:, :0]}, "actions of a fragment are int64 of shape"),
        (lambda f: {"final_observations": {}}, r"columns final.\* for \[\]; they must be for \['observation'\]"),
        (lambda f: {"final_observations": finals_of(f)[:-1]}, r"column final.observation .* has shape \(\d+, 3\)"),
        (lambda f: {"final_observations": finals_of(f)[:, :2]}, "column final.observation .* has shape"),
        (lambda f: {"final_observations": finals_of(f).astype(int)}, "column final.observation .* type int64"),
        (lambda f: {"truncated": f.truncated & False, "terminated": f.truncated | f.terminated}, "column final.obs"),
        (lambda f: {"past": f.past._replace(resets=f.past.resets[:, 1:])}, "column past.observation.obs.* has shape"),
        (lambda f: {"past": f.past._replace(resets=f.past.resets[0])}, "column past"),
        (lambda f: {"past": f.past._replace(carries={})}, r"columns past.carry.\* for \[\]; they must be for \['h'\]"),
    ],
)
def test_shapes_and_flags_that_disagree_are_refused(
    counting_collector: Callable[..., Collector], changes: Callable[[Fragment], dict[str, Any]], sentence: str
) -> None:
    fragment = counting_collector(warm_up=4).collect()[0]
    changed = changes(fragment)
    if isinstance(finals := changed.get("final_observations"), np.ndarray):
        changed = {"final_observations": {"observation": finals}}
    with pytest.raises(FragmentError, match=sentence):
        replace(fragment, **changed).validate()


def test_another_schema_is_refused(counting_collector: Callable[..., Collector]) -> None:
    batch = counting_collector().collect()[0].to_arrow()
    with pytest.raises(FragmentError, match="schema version 99"):
        Fragment.from_arrow(batch.replace_schema_metadata({"schema_version": "99", "carry_stride": "1"}))
    with pytest.raises(FragmentError, match="lacks columns \\['rewards'\\]"):
        Fragment.from_arrow(batch.drop_columns(["rewards"]).replace_schema_metadata(batch.schema.metadata))


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.LargeListArray.from_arrays([0, 3, 3, 3, 3, 3, 3], pa.array(np.zeros(3, np.float32))), "holds lists of"),
        (pa.array([None] * 6, pa.large_list(pa.float32())), "holds lists of"),
        (pa.array(["text"] * 6), "cannot be read"),
        (pa.array(np.zeros(6, np.float32)), "cannot be read"),
    ],
)
def test_a_column_of_lists_that_is_none_is_refused(
    counting_collector: Callable[..., Collector], column: pa.Array, sentence: str
) -> None:
    batch = counting_collector().collect()[0].to_arrow()
    at = batch.schema.get_field_index("final.observation")
    with pytest.raises(FragmentError, match=f"{sentence}.*run the same release of Mneme everywhere"):
        Fragment.from_arrow(batch.set_column(at, pa.field("final.observation", column.type), column))


@pytest.mark.parametrize("stride", ["0", "-3", "many"])
def test_a_carry_stride_that_is_none_is_refused(counting_collector: Callable[..., Collector], stride: str) -> None:
    batch = counting_collector().collect()[0].to_arrow()
    metadata = batch.schema.metadata | {b"carry_stride": stride}
    with pytest.raises(FragmentError, match="cannot be read"):
        Fragment.from_arrow(batch.replace_schema_metadata(metadata))


def test_any_rows_of_a_batch_keep_their_final_observations(fragment: Fragment) -> None:
    batch, lanes = fragment.to_arrow(), np.nonzero(fragment.cut_short)[0]
    for first, count in ((0, 6), (2, 3), (5, 1)):
        rows = Fragment.from_arrow(batch.slice(first, count))
        rows.validate()
        np.testing.assert_array_equal(finals_of(rows), finals_of(fragment)[(first <= lanes) & (lanes < first + count)])


def test_a_final_observation_that_is_not_finite_is_its_lanes(counting_collector: Callable[..., Collector]) -> None:
    fragment = counting_collector().collect()[0]
    finals = finals_of(fragment).copy()
    row = int(np.flatnonzero(np.nonzero(fragment.cut_short)[0] == 2)[0])
    finals[row, 1] = np.nan
    with pytest.raises(
        FragmentError, match=rf"column final.observation .*lane 2.* at index \({row}, 1\); check the env"
    ):
        replace(fragment, final_observations={"observation": finals}).validate()


def test_final_observations_cost_next_to_nothing_where_there_are_none(
    counting_collector: Callable[..., Collector],
) -> None:
    fragment = counting_collector(length=2).collect()[0]  # no episode is as short
    assert not fragment.cut_short.any()
    batch = fragment.to_arrow()
    assert batch.nbytes - batch.drop_columns(["final.observation"]).nbytes <= 8 * (6 + 1)
