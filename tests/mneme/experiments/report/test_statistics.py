"""Statistics over seeds and tasks, held against what can be worked out by hand."""

import numpy as np
import pytest

from mneme.experiments.report.statistics import (
    interquartile_curve,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)


def arrays(*tasks: list[float]) -> list[np.ndarray]:
    return [np.array(scores) for scores in tasks]


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end_of_all_scores_together() -> None:
    assert interquartile_mean(arrays([0.0, 9.0, 1.0, 2.0], [3.0, 4.0, 5.0, 99.0])).value == pytest.approx(3.5)
    assert interquartile_mean(arrays([1.0, 2.0, 6.0])).value == pytest.approx(3.0)


def test_the_interval_is_that_of_resampled_seeds_task_by_task() -> None:
    rng = np.random.default_rng(1)
    easy, hard = rng.normal(0.9, 0.02, 8), rng.normal(0.1, 0.02, 8)
    found = interquartile_mean([easy, hard])
    own = [
        np.sort(np.concatenate([rng.choice(easy, 8), rng.choice(hard, 8)]))[4:-4].mean() for _ in range(2000)
    ]  # of each task as many as it has: all together would also mix the tasks' shares
    assert found.low == pytest.approx(np.quantile(own, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(own, 0.975), abs=0.02)
    assert found.low < found.value < found.high


def test_a_single_seed_has_no_interval() -> None:
    found = interquartile_mean(arrays([0.3, 0.4], [0.5]))
    assert found.value == pytest.approx(0.4)
    assert np.isnan([found.low, found.high]).all()
    _, low, high = interquartile_curve(np.array([[1.0, 2.0]]))
    assert np.isnan([low, high]).all()


def test_a_profile_is_the_share_of_runs_that_score_at_least_so_much() -> None:
    share, low, high = performance_profile(arrays([0.0, 0.5], [0.5, 1.0]), np.array([0.0, 0.5, 0.6, 1.1]))
    np.testing.assert_allclose(share, [1.0, 0.75, 0.25, 0.0])
    assert (low <= share).all() and (share <= high).all()


def test_the_probability_of_improvement_counts_pairs_of_one_task_and_ties_half() -> None:
    found = probability_of_improvement(arrays([0.1, 0.5, 0.9], [0.2, 0.8]), arrays([0.0, 0.4, 0.7], [0.2, 0.5]))
    assert found.value == pytest.approx(((1 + 2 + 3) / 9 + (0.5 + 2) / 4) / 2)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert probability_of_improvement(arrays([2.0, 3.0]), arrays([0.0, 1.0]))[:] == (1.0, 1.0, 1.0)


def test_a_curve_has_the_middle_and_its_interval_at_every_step() -> None:
    values = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])
    middle, low, high = interquartile_curve(values)
    np.testing.assert_allclose(middle, [0.0, 2.5])
    assert (low[0], high[0]) == (0.0, 0.0)
    assert 1.0 <= low[1] < 2.5 < high[1] <= 4.0
