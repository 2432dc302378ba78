"""What Tune is asked for, without a Ray: points of a space, and what is learned from trials of the past."""

from types import SimpleNamespace
from typing import Literal

import pytest
from ray.tune.schedulers import TrialScheduler

from mneme.distributed.search_space import Range, Space, Trial
from mneme.distributed.tuning import EarlyStopping, Past, Study, _Ended, _Optuna, _scheduler, drawn

SPACE: Space = {
    "rate": Range(1e-4, 1e-2, log=True),
    "width": Range(8, 10, whole=True),
    "layers": ([64], [64, 64], None),
}


def test_a_grid_is_every_combination() -> None:
    points = list(drawn({"a": (1, [2]), "b": ("x", "y", None)}, grid=True, number=1, seed=0))
    assert sorted(points, key=str) == [
        {"a": a, "b": b} for a, b in sorted([(a, b) for a in (1, [2]) for b in ("x", "y", None)], key=str)
    ]


def test_random_points_lie_in_the_space_bounds_included() -> None:
    points = list(drawn(SPACE, grid=False, number=200, seed=0))
    assert all(1e-4 <= point["rate"] <= 1e-2 for point in points)
    assert {point["width"] for point in points} == {8, 9, 10}
    assert {str(point["layers"]) for point in points} == {"[64]", "[64, 64]", "None"}
    assert 60 < sum(point["rate"] < 1e-3 for point in points) < 140  # as many in each factor of ten


def test_more_random_points_begin_with_the_same() -> None:
    few, many = (list(drawn(SPACE, grid=False, number=number, seed=3)) for number in (4, 9))
    assert many[:4] == few
    assert many != list(drawn(SPACE, grid=False, number=9, seed=4))


def past(*curves: list[tuple[int, float]]) -> list[Past]:
    return [Past(Trial(i, 0, {"rate": 1e-3, "width": 8, "layers": None}), curve) for i, curve in enumerate(curves)]


def decisions(rule: Literal["asha", "median"], before: list[Past], curve: list[tuple[int, float]]) -> list[str]:
    stopping = EarlyStopping(rule=rule, grace=100, longest=900, reduction_factor=3.0)
    scheduler = _scheduler(stopping, "success", "max", before)
    trial, controller = _Ended("new"), SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(controller, trial)
    return [scheduler.on_trial_result(controller, trial, {"steps": steps, "success": value}) for steps, value in curve]


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_early_stopping_knows_the_trials_of_the_past(rule: Literal["asha", "median"]) -> None:
    good = [(steps, 0.8) for steps in range(100, 1000, 100)]
    late = [(steps, 0.1 if steps < 800 else 0.9) for steps in range(100, 1000, 100)]  # may once have been alone
    worse = [(100, 0.3)]
    assert decisions(rule, [], worse)[0] == TrialScheduler.CONTINUE
    assert decisions(rule, past(good, good, good), worse)[0] == TrialScheduler.STOP
    assert decisions(rule, past(good, good, good, late), worse)[0] == TrialScheduler.STOP
    assert TrialScheduler.STOP not in decisions(rule, past(good, good, good), [(100, 0.9), (300, 0.9)])


def test_no_trial_is_given_up_before_its_grace() -> None:
    good = [(steps, 0.8) for steps in range(10, 1000, 10)]
    assert decisions("asha", past(good, good, good), [(90, 0.0)]) == [TrialScheduler.CONTINUE]


def test_optuna_goes_on_with_what_was_begun_and_learns_from_what_was_tried() -> None:
    pytest.importorskip("optuna")
    begun = Trial(7, 5, {"rate": 2e-3, "width": 9, "layers": [64, 64]})
    search = _Optuna(Study(SPACE, 3, 8, 5), [begun], past([(10, 0.1)], [(10, 0.2)], []), "success", "max")
    first, second = (search.suggest(name) for name in ("a", "b"))
    assert first is not None and second is not None
    assert Trial(**first["trial"]) == begun
    assert Trial(**second["trial"])[:2] == (8, 5)
    assert 8 <= second["trial"]["point"]["width"] <= 10
    told = [trial.value for trial in search._ot_study.trials if trial.value is not None]
    assert told == [0.1, 0.2]  # nothing of one that came to no evaluation
