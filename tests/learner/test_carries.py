"""Stored carries stay where they are until they are taken, whichever fragment they are in."""

import numpy as np
import pytest
import torch

from mneme.learner.carries import StoredCarries

CPU = torch.device("cpu")


def two_parts() -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Fragments of two and of three sequences with four carries each, and all of them together."""
    whole = np.arange(5 * 4 * 2, dtype=np.float32).reshape(5, 4, 2)
    whole.flags.writeable = False
    return [{"h": whole[:2]}, {"h": whole[2:]}], whole


def test_what_is_taken_is_what_was_stored_in_the_order_asked_for() -> None:
    parts, whole = two_parts()
    carries = StoredCarries(parts, CPU)
    np.testing.assert_array_equal(carries.every()["h"], whole)
    rows = torch.tensor([4, 0, 2, 4])
    np.testing.assert_array_equal(carries.at(rows, slice(1, 4, 2))["h"], whole[[4, 0, 2, 4]][:, [1, 3]])
    some = carries.rows(torch.tensor([3, 1]))
    np.testing.assert_array_equal(some.every()["h"], whole[[3, 1]])
    np.testing.assert_array_equal(some.at(torch.tensor([1]), slice(0, 1))["h"], whole[[1], :1])


def test_what_is_taken_shares_no_memory_with_what_is_stored() -> None:
    parts, whole = two_parts()
    StoredCarries(parts, CPU).every()["h"].zero_()
    assert whole.any()


@pytest.mark.parametrize("parts", [[{}], [{}, {}]])
def test_a_model_without_memory_has_none(parts: list[dict[str, np.ndarray]]) -> None:
    carries = StoredCarries(parts, CPU)
    assert carries.every() == carries.rows(torch.tensor([2])).at(torch.tensor([0]), slice(0, 1)) == {}
