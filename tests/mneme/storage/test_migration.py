"""What checkpoints did not hold at first is as it was then, and nothing else is changed."""

import numpy as np

from mneme.storage.checkpoint import Checkpoint
from mneme.storage.migration import migrated


def test_a_checkpoint_of_before_gets_what_it_lacks() -> None:
    old = Checkpoint({"steps": 3, "config": {"rollout": {"lanes": 4}}}, {"learner": {"version": np.array(7)}})
    new = migrated(old)
    assert new.run == {
        "steps": 3, "config": {"rollout": {"num_envs": 4}}, "evaluation_due": False, "ended": False,
        "best": None, "mode_schedule": {"stage": 0, "returns": []},
    }  # fmt: skip
    assert {name: int(array) for name, array in new.arrays["learner"].items()} == {
        "version": 7,
        "nonfinite_in_a_row": 0,
    }


def test_one_of_today_is_left_as_it_is() -> None:
    run = {
        "config": {"rollout": {"num_envs": 4}}, "evaluation_due": True, "best": {"step": 1, "score": [1.0, 2.0]},
        "mode_schedule": {"stage": 1, "returns": [0.5]}, "ended": True,
    }  # fmt: skip
    learner = {"nonfinite_in_a_row": np.array(2)}
    assert migrated(Checkpoint(run, {"learner": learner})) == Checkpoint(run, {"learner": learner})
