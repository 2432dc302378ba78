"""The learning rate's way to zero, in a run that is extended too."""

import pytest

from mneme.learner.annealing import Annealing


def shares(annealing: Annealing, *steps: float) -> tuple[list[float], Annealing]:
    found = []
    for step in steps:
        annealing = annealing.at(step)
        found.append(annealing.share)
    return found, annealing


def test_it_falls_in_a_line_to_zero() -> None:
    found, _ = shares(Annealing(0, 1, 640, 1), 0, 64, 320, 576, 640, 700)
    assert found == pytest.approx([1, 0.9, 0.5, 0.1, 0, 0])


def test_an_extended_run_goes_on_from_its_last_rate_and_never_rises() -> None:
    before, annealing = shares(Annealing(0, 1, 640, 1), *range(0, 640, 64))
    longer = annealing.until(1280, 640)
    after, longer = shares(longer, *range(640, 1280, 64))
    assert before[-1] == pytest.approx(0.1)
    assert after[0] == pytest.approx(0.1)
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(0.01)
    assert shares(longer.until(1280, 704), 704)[0] == pytest.approx([0.09])  # killed and resumed on its way


def test_a_run_with_its_own_end_goes_on_as_it_was() -> None:
    _, annealing = shares(Annealing(0, 1, 640, 1), 0, 64)
    assert annealing.until(640, 128) == annealing
