"""The curriculum: when a level is mastered, what a run at each level sees, and that it resumes where it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mneme.configuration.config import Config, load_config
from mneme.curriculum import Curriculum
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.settings import CurriculumSettings
from mneme.distributed.workers import LearnerWorker, RolloutWorker
from mneme.episodes import Episodes
from mneme.rollout_workers import Fragment
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")


def played(successes: list[bool], level: int) -> Episodes:
    n = len(successes)
    return Episodes(level, np.zeros(n), np.ones(n, np.int64), np.array(successes))


def test_a_level_ends_once_enough_of_the_latest_episodes_succeed() -> None:
    curriculum = Curriculum(CurriculumSettings(stages=({"a": 1}, {"a": 2}), success=0.75, episodes=4))
    assert not curriculum.advance([played([True] * 3, 0)])  # too few to judge
    assert not curriculum.advance([played([False, False, True], 0)])  # T F F T
    assert not curriculum.advance([played([True], 0)])  # F F T T
    assert curriculum.advance([played([True], 0)])  # F T T T
    assert (curriculum.level, curriculum.complete) == (1, False)
    assert not curriculum.advance([played([True] * 4, 0)])  # of the level before: still under way then
    assert curriculum.advance([played([True] * 2, 1), played([False, True], 1)])
    assert (curriculum.level, curriculum.complete) == (2, True)
    assert not curriculum.advance([played([True] * 100, 2)])


def test_without_stages_the_task_itself_is_played() -> None:
    curriculum = Curriculum(CurriculumSettings())
    assert curriculum.complete
    assert not curriculum.advance([played([True] * 1000, 0)])


def test_its_state_survives_json() -> None:
    settings = CurriculumSettings(stages=({"a": 1}, {"a": 2}), success=1.0, episodes=3)
    curriculum = Curriculum(settings)
    curriculum.advance([played([True] * 3, 0)])
    curriculum.advance([played([True] * 2, 1)])
    again = Curriculum(settings)
    again.set_state(json.loads(json.dumps(curriculum.state())))
    assert again.level == 1
    assert again.advance([played([True], 1)])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({"success": 0.0}, "curriculum.success is 0.0"), ({"episodes": 0}, "curriculum.episodes is 0")],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CurriculumSettings(**values)


def staged(tmp_path: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=16",
         "env.kwargs.cues=2", "env.kwargs.horizon=4", "policy.controller.hidden_size=16", "train.total_timesteps=960",
         "rollout.unroll_length=10", "checkpoint.every=320", "checkpoint.keep=100", "train.evaluation_episodes=16",
         "learner.num_threads=2", "learner.num_epochs=1", "learner.num_minibatches=2",
         "curriculum.stages=[{horizon: 1}, {horizon: 2}]", "curriculum.success=0.4", "curriculum.episodes=64",
         *overrides],
    )  # fmt: skip


def test_a_worker_plays_the_level_it_is_asked_for(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    blueprint = make_blueprint(staged(tmp_path))
    assert [blueprint.env(level).kwargs["horizon"] for level in range(3)] == [1, 2, 4]
    weights = LearnerWorker(blueprint).weights()
    worker, incarnations = RolloutWorker(blueprint, 0), []
    for level, length in ((0, 2), (1, 3), (2, 5), (0, 2)):
        for _ in range(2):
            said, batch = worker.collect(weights, level)
            assert said.level == level
            assert said.stats is not None
            assert set(said.stats.lengths) == {length}
            assert batch is not None
            Fragment.from_arrow(batch).validate()
            incarnations.append(said.incarnation)
    assert incarnations == [0, 0, 1, 1, 2, 2, 3, 3]  # no level repeats the randomness of another


def test_a_run_climbs_its_levels_and_resumes_on_the_one_it_was_on(tmp_path: Path, capsys: Any) -> None:
    straight = train(staged(tmp_path / "a"), local=True)
    out = capsys.readouterr().out
    assert "level 1 begins, {'horizon': 2}" in out
    assert "level 2 begins, the task itself" in out
    rows = [json.loads(line) for line in (straight.folder / "metrics.jsonl").read_text().splitlines()]
    levels = [row["curriculum/level"] for row in rows if "kl" in row]
    assert levels == sorted(levels)
    assert set(levels) == {0.0, 1.0, 2.0}
    assert straight.evaluation is not None
    assert (straight.evaluation.lengths == 5).all()  # the task itself is what counts

    climbed = next(row["step"] for row in rows if row.get("curriculum/level") == 1.0)  # one update after the climb
    before = max(row["step"] for row in rows if "kl" in row and row["step"] < climbed)
    short = train(staged(tmp_path / "b", f"train.total_timesteps={int(before)}"), local=True)
    saved = load_checkpoint(list_checkpoints(short.folder / "checkpoints")[-1])
    assert saved.run["curriculum"]["level"] == 1  # the last update's episodes count
    resume(short.folder, "train.total_timesteps=960", local=True)
    a, b = (load_checkpoint(list_checkpoints(run.folder / "checkpoints")[-1]) for run in (straight, short))
    assert a.run["curriculum"] == b.run["curriculum"]
    for part, arrays in a.arrays.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, b.arrays[part][name], err_msg=f"{part}/{name}")
