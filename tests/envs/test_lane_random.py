"""Counter-based random numbers: right distribution, independence, and no dependence on grouping."""

import numpy as np
import pytest

from mneme.envs.lane_random import (
    NORMAL_BOUND,
    fold_in,
    lane_integers,
    lane_keys,
    lane_noise,
    lane_normal,
    lane_uniform,
)

_MASK = (1 << 64) - 1


def _reference_child(key: int, counter: int) -> int:
    """The child of a key in Python's integers: SplitMix64's output number counter + 1 from state key."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def test_known_values_of_splitmix64() -> None:
    key = np.zeros(1, dtype=np.uint64)
    assert [int(fold_in(key, i)[0]) for i in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize(("seed", "lane", "counter"), [(0, 0, 0), (7, 3, 11), (2**64 - 1, 2**40, 2**62), (5, 1, 64)])
def test_matches_reference_in_python_integers(seed: int, lane: int, counter: int) -> None:
    key = _reference_child(_reference_child(seed, 0), lane)
    assert int(lane_keys(seed, np.array([lane]))[0]) == key
    expected = [(_reference_child(_reference_child(key, counter), d) >> 11) / 2**53 for d in range(3)]
    np.testing.assert_array_equal(lane_uniform(lane_keys(seed, [lane]), counter, 3), [expected])


def test_numbers_do_not_depend_on_how_lanes_are_grouped() -> None:
    keys, counters = lane_keys(3, np.arange(10)), np.arange(10) * 7
    whole = lane_uniform(keys, counters, 4)
    halves = [lane_uniform(lane_keys(3, part), counters[part], 4) for part in (np.arange(3), np.arange(3, 10))]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    np.testing.assert_array_equal(lane_uniform(keys, counters, 2), whole[:, :2])


def test_noise_is_uniforms_at_successive_counters() -> None:
    keys = lane_keys(1, np.arange(5))
    noise = lane_noise(keys, 100, 6, 3)
    assert noise.shape == (5, 6, 3)
    for t in range(6):
        np.testing.assert_array_equal(noise[:, t], lane_uniform(keys, 100 + t, 3))
    np.testing.assert_array_equal(np.concatenate((noise[:, :2], lane_noise(keys, 102, 4, 3)), axis=1), noise)
    np.testing.assert_array_equal(lane_noise(keys, 100, 6, 1), noise[..., :1])


def test_arguments_are_left_alone() -> None:
    keys, counters = lane_keys(1, np.arange(4)), np.arange(4)
    kept = keys.copy(), counters.copy()
    lane_normal(keys, counters, 3)
    lane_noise(keys, 0, 3, 2)
    np.testing.assert_array_equal(keys, kept[0])
    np.testing.assert_array_equal(counters, kept[1])


def test_uniform_in_range_and_equidistributed() -> None:
    values = lane_noise(lane_keys(0, np.arange(64)), 0, 4096, 1)[..., 0]
    assert values.min() >= 0.0
    assert values.max() < 1.0
    counts = np.bincount((values * 256).astype(int).ravel(), minlength=256)
    expected = values.size / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 4 * np.sqrt(510) < chi_square < 255 + 4 * np.sqrt(510)


@pytest.mark.parametrize("axis", ["lanes", "counters", "draws", "seeds"])
def test_neighbours_are_uncorrelated(axis: str) -> None:
    n = 20_000
    if axis == "lanes":
        values = lane_uniform(lane_keys(0, np.arange(n)), 0, 1)[:, 0]
    elif axis == "counters":
        values = lane_noise(lane_keys(0, [0]), 0, n, 1)[0, :, 0]
    elif axis == "draws":
        values = lane_uniform(lane_keys(0, [0]), 0, n)[0]
    else:
        values = np.array([lane_uniform(lane_keys(seed, [0]), 0, 1)[0, 0] for seed in range(2000)])
    for lag in (1, 2, 64):
        correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(len(values))


def test_no_two_of_many_keys_are_equal() -> None:
    keys = np.concatenate([lane_keys(seed, np.arange(1000)) for seed in range(100)])
    assert len(np.unique(keys)) == keys.size


@pytest.mark.parametrize("high", [1, 2, 3, 8, 1000])
def test_integers_cover_their_range_evenly(high: int) -> None:
    values = lane_integers(lane_keys(9, np.arange(200)), 5, high, 500)
    assert values.dtype == np.int64
    counts = np.bincount(values.ravel(), minlength=high)
    assert len(counts) == high
    expected = values.size / high
    assert np.abs(counts - expected).max() <= 5 * np.sqrt(expected)


def test_normals_have_the_moments_of_a_standard_normal() -> None:
    values = lane_normal(lane_keys(2, np.arange(1000)), 1, 101)
    assert values.shape == (1000, 101)
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.var() - 1.0) < 4 * np.sqrt(2 / values.size)
    assert abs((values**4).mean() - 3.0) < 4 * np.sqrt(96 / values.size)
    assert 4.0 < np.abs(values).max() <= NORMAL_BOUND
    assert abs(np.corrcoef(values[:, 0], values[:, 51])[0, 1]) < 4 / np.sqrt(1000)
