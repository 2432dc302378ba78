"""What an evaluation is said to have shown."""

import numpy as np
import pytest

from mneme.reporting.meter import describe_evaluation, evaluation_row
from mneme.rollout_workers import Evaluation


def evaluation(returns: list[float]) -> Evaluation:
    values = np.array(returns)
    return Evaluation(values, np.full(len(values), 3), values >= 1, (values * 2).astype(np.uint64))


def test_equal_returns_are_not_given_an_interval() -> None:
    assert describe_evaluation(evaluation([1.0] * 512)) == (
        "return 1.000 (all equal), success 100.0% [99.3%, 100.0%] over 512 episodes, 1 of them distinct"
    )
    assert "evaluation/return_low" not in evaluation_row(evaluation([1.0] * 512), "evaluation/")


def test_the_row_and_the_sentence_agree() -> None:
    mixed = evaluation([1.0, 0.0, 0.0, 1.0, 0.5])
    row = evaluation_row(mixed, "confirmation/")
    assert row["confirmation/return"] == 0.5
    assert row["confirmation/distinct_episodes"] == 3
    assert row["confirmation/success"] == pytest.approx(0.4)
    low, high = row["confirmation/return_low"], row["confirmation/return_high"]
    assert 0 <= low < 0.5 < high <= 1
    assert describe_evaluation(mixed).startswith(f"return 0.500 [{low:.3f}, {high:.3f}], success 40.0% [")
    assert describe_evaluation(mixed).endswith("over 5 episodes, 3 of them distinct")
