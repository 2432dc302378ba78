"""Training on other packages' environments: some updates of the whole system, and the invariants of its pipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mneme.configuration.config import load_config
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")

TASKS: dict[str, list[str]] = {
    "CartPole that hides its velocities": ["env.id=CartPole-v1", "spaces.features=[0, 2]"],
    "CartPole that hides its velocities, one at a time": [
        "env.id=CartPole-v1", "spaces.features=[0, 2]", "env.vectorization_mode=sync", "env.max_episode_steps=20",
    ],
    "POPGym's CartPole": ["env.id=popgym:popgym-PositionOnlyCartPoleEasy-v0", "policy.normalize_observations=true"],
    "POPGym's repeat previous": ["env.id=popgym:popgym-RepeatPreviousEasy-v0", "spaces.previous_reward=true"],
    "MiniGrid's memory": [
        "env.id=minigrid:MiniGrid-MemoryS7-v0", "spaces.keys=[image, direction]", "policy.image_features=16",
    ],
    "two choices at once": ["env.id=popgym:popgym-BattleshipEasy-v0", "spaces.previous_action=true"],
    "a continuous action": ["env.id=Pendulum-v1", "spaces.features=[0, 1]", "learner.normalize_rewards=true"],
    "masked actions": ["env.id=Taxi-v3", "env.max_episode_steps=20"],
    "a squashed continuous action": ["env.id=popgym:popgym-PositionOnlyPendulumEasy-v0", "spaces.squash=true"],
}  # fmt: skip


def run(folder: Path, overrides: list[str], total: int = 2 * 8 * 32) -> Any:
    config = load_config(
        None,
        [f"checkpoint.root={folder}", "name=run", "tracking.enabled=false", "rollout.num_envs=8",
         "rollout.unroll_length=32",
         "env.kwargs={}", "policy.controller.hidden_size=16", "learner.num_epochs=1", "learner.num_minibatches=2",
         f"train.total_timesteps={total}", "train.evaluation_episodes=4", *overrides],
    )  # fmt: skip
    return train(config, local=True)


@pytest.mark.parametrize("mode", [["learner.mode=full"], ["learner.mode=truncated", "learner.bptt_length=12"]], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_updates_keep_the_invariants_of_the_pipe(tmp_path: Path, task: str, mode: list[str]) -> None:
    result = run(tmp_path, [*TASKS[task], *mode])
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if "kl" in row]
    assert len(updates) >= 2
    for row in updates:
        assert row["ratio_error"] < 2e-5
        assert row["fragments_refused"] == row["environment_failures"] == 0
        assert row["kl"] > 0
        assert all(np.isfinite(row[name]) for name in ("policy_loss", "value_loss", "entropy", "grad_norm"))
    assert result.evaluation is not None
    assert result.evaluation.episodes >= 4
    assert np.isfinite(result.evaluation.returns).all()


def test_a_run_resumes_with_its_statistics(tmp_path: Path) -> None:
    first = run(tmp_path, [*TASKS["POPGym's CartPole"], "learner.normalize_rewards=true"])
    before = load_checkpoint(list_checkpoints(first.folder / "checkpoints")[-1]).arrays["learner"]
    resumed = resume(first.folder, f"train.total_timesteps={first.steps + 1}", local=True)
    after = load_checkpoint(list_checkpoints(resumed.folder / "checkpoints")[-1]).arrays["learner"]
    counts = [name for name in before if name.endswith("count")]
    assert counts
    for name in counts:  # one more update of 8 lanes and 32 steps
        assert after[name] == before[name] + 8 * 32
    assert after["reward_scale.moments"][0] == before["reward_scale.moments"][0] + 8 * 32
