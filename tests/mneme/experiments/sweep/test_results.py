"""What a sweep keeps: which configuration is the best, what its table says, and what it goes on with."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from mneme.distributed.config import ConfigError
from mneme.distributed.search_space import Trial
from mneme.experiments.sweep.importance import importances
from mneme.experiments.sweep.picture import draw
from mneme.experiments.sweep.plan import Plan, make_plan
from mneme.experiments.sweep.results import Configuration, SweepResults
from mneme.experiments.sweep.table import as_csv, as_markdown, in_order, short_names

METRIC = "evaluation/success"
SPACE = {"learner.learning_rate": [0.001, 0.01, 0.1], "policy.controller.kind": ["gru", "lstm"]}


def plan_of(*overrides: str, space: Any = SPACE, **search: Any) -> Plan:
    return make_plan(None, overrides, {"space": space, "metric": METRIC, "seeds": 2, **search}, Path("/s"))


@pytest.fixture
def results(tmp_path: Path) -> SweepResults:
    found = SweepResults(tmp_path)
    found.declare(plan_of(), {})
    return found


def end(results: SweepResults, number: int, seed: int, value: float | None, steps: int = 100, **more: Any) -> None:
    points = [(rate, kind) for rate in SPACE["learner.learning_rate"] for kind in SPACE["policy.controller.kind"]]
    point = dict(zip(SPACE, points[number], strict=True))
    report = {"steps": steps, "seconds": 2.0, "outcome": "complete", **({} if value is None else {METRIC: value})}
    results.end(Trial(number, seed, point), [(steps, value or 0.0)], report | more)


def test_the_best_has_the_highest_mean_over_its_seeds(results: SweepResults) -> None:
    for number, values in enumerate([(1.0, 0.2), (0.7, 0.7), (0.1, 0.1)]):
        for seed, value in enumerate(values):
            end(results, number, seed, value)
    assert results.best is not None and results.best.number == 1
    assert [found.number for found in in_order(results)] == [1, 0, 2]
    lowest = SweepResults(results.path.parent)
    lowest.document["sweep"]["goal"] = "min"
    assert lowest.best is not None and lowest.best.number == 2


def test_of_equals_the_best_needed_the_fewest_steps(results: SweepResults) -> None:
    for number, steps in enumerate([300, 200, 400]):
        end(results, number, 0, 1.0, steps)
    assert results.best is not None and results.best.number == 1


def test_what_was_given_up_or_failed_is_the_best_only_of_its_like(results: SweepResults) -> None:
    end(results, 0, 0, 0.9, outcome="stopped early")
    end(results, 1, 0, None, outcome="failed", failure="the loss is nan")
    assert results.best is not None and results.best.number == 0
    end(results, 2, 0, 0.5)
    assert results.best is not None and results.best.number == 2
    assert "| 001 " in as_markdown(results).splitlines()[-1]  # no value: the last


def test_the_table_says_what_every_seed_came_to(results: SweepResults) -> None:
    end(results, 3, 0, 1.0, 300)
    end(results, 3, 1, None, 500, outcome="failed", failure="the loss is nan")
    heading, _, row = as_markdown(results).splitlines()
    assert [cell.strip() for cell in heading.split("|")[1:-1]] == [
        "", "learning_rate", "kind", METRIC, "each seed", "steps", "seconds", "outcome",
    ]  # fmt: skip
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "003", "0.01", "lstm", "1.000", "1.000, –", "400", "2", "1 complete, 1 failed",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [(row["policy.controller.kind"], row["seed"], row["failure"]) for row in rows] == [
        ("lstm", "0", ""), ("lstm", "1", "the loss is nan"),
    ]  # fmt: skip


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["learner.learning_rate", "policy.controller.kind"]) == ["learning_rate", "kind"]
    assert short_names(["a.b.kind", "a.c.kind"]) == ["b.kind", "c.kind"]


def test_a_sweep_goes_on_only_as_it_was_begun_but_may_grow(results: SweepResults) -> None:
    end(results, 0, 0, 0.5)
    again = SweepResults(results.path.parent)
    again.declare(plan_of(seeds=5, trials=99), {})
    with pytest.raises(ConfigError, match="is of another sweep, with other goal; give the same, or choose another"):
        again.declare(plan_of(goal="min"), {})
    with pytest.raises(ConfigError, match="is of another sweep, with other learner; give the same"):
        again.declare(plan_of("learner.gamma=0.5"), {})
    del again.document["sweep"]["reduction_factor"]  # as a version that did not have it would have left the file
    again.declare(plan_of(), {})
    del again.document["sweep"]["reduction_factor"]
    with pytest.raises(ConfigError, match="with other reduction_factor"):
        again.declare(plan_of(reduction_factor=2.0), {})


def test_what_has_begun_and_not_ended_is_found_again(results: SweepResults) -> None:
    trials = [Trial(number, 0, {"learner.learning_rate": 0.1 / (1 + number)}) for number in range(3)]
    for trial in trials:
        results.begin(trial)
        results.begin(trial)  # its process was lost, and another took its place
    results.end(trials[1], [], {"steps": 1, "outcome": "complete"})
    again = SweepResults(results.path.parent)
    assert again.begun == [trials[0], trials[2]]
    assert again.missing(trials) == [trials[0], trials[2]]
    assert again.next_number == 3


def test_the_setting_that_matters_has_the_larger_share(results: SweepResults) -> None:
    pytest.importorskip("optuna")
    for number in range(6):
        end(results, number, 0, [0.1, 0.2, 0.5, 0.6, 0.9, 1.0][number])
    shares = importances(results.configurations, METRIC, SPACE)
    assert list(shares) == ["learner.learning_rate", "policy.controller.kind"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["learner.learning_rate"] > 0.8
    assert importances(results.configurations, METRIC, {"learner.learning_rate": [1]}) == {}


def test_a_range_may_have_bounds_that_are_whole_where_its_values_are_not_and_the_reverse() -> None:
    pytest.importorskip("optuna")
    space = {"learner.ent_coef": {"low": 0, "high": 1}, "learner.num_epochs": {"low": 1.0, "high": 8.0}}
    points = [(0.1, 8), (0.37, 1), (0.5, 4), (0.75, 2), (0.9, 8), (0.2, 2)]
    found = [
        Configuration(number=number, point=dict(zip(space, point, strict=True)), trials=[{METRIC: point[0]}])
        for number, point in enumerate(points)
    ]
    assert list(importances(found, METRIC, space)) == list(space)


def test_a_picture_is_drawn_of_what_has_a_value(results: SweepResults, tmp_path: Path) -> None:
    draw(results, tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()
    end(results, 0, 0, 0.5)
    end(results, 5, 0, None, outcome="failed")
    draw(results, tmp_path / "sweep.png", "one")
    assert (tmp_path / "sweep.png").stat().st_size > 1000
