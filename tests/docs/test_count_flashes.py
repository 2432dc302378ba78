"""The documentation's example of a task: played with perfect memory, without any, and trained on."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from docs.examples.count_flashes import CountFlashes
from mneme.configuration.config import load_config
from mneme.envs import facts_of
from mneme.training import train
from tests.envs.first_episodes import memoryless_returns, returns_of, seeds_of_each_content

ID = "mneme-examples/CountFlashes-v0"


def test_gymnasium_finds_nothing_wrong(recwarn: pytest.WarningsRecorder) -> None:
    check_env(gym.make(ID, disable_env_checker=True).unwrapped, skip_render_check=True)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("steps", [1, 8, 30])
def test_whoever_counts_gets_the_optimal_return(steps: int) -> None:
    env = CountFlashes(64, steps)
    count_B = np.zeros(64, dtype=np.int64)

    def act(observation: np.ndarray) -> np.ndarray:
        nonlocal count_B
        count_B = count_B + observation[:, 0].astype(np.int64)
        return count_B.copy()

    assert (returns_of(env, act) == env.facts.optimal_return).all()
    assert len(set(count_B.tolist())) > 1


def test_no_memoryless_policy_beats_the_declared_return() -> None:
    def make(lanes: int) -> CountFlashes:
        return CountFlashes(lanes, 3)

    seeds = seeds_of_each_content(make, action=0)
    assert len(seeds) == 2**3
    views = np.array([[0, 0], [1, 0], [0, 1]], dtype=np.float32)
    returns = memoryless_returns(make, seeds, views)
    facts = facts_of(make(1))
    assert facts is not None
    assert returns.max() == facts.memoryless_return == 3 / 8
    assert returns.mean() == facts.chance_return == 1 / 4


def test_it_trains_by_the_id_that_the_page_gives(tmp_path: Path) -> None:
    config = load_config(
        None,
        [f"env.id=docs.examples.count_flashes:{ID}", "env.kwargs.steps=2", f"checkpoint.root={tmp_path}",
         "tracking.enabled=false", "rollout.num_envs=8", "policy.controller.hidden_size=8", "learner.num_minibatches=2",
         "train.total_timesteps=72", "train.evaluation_episodes=16"],
    )  # fmt: skip
    result = train(config, local=True)
    assert result.steps == 72  # three updates of 8 lanes and 3 steps
    assert result.evaluation is not None
    assert (result.evaluation.lengths == 3).all()
