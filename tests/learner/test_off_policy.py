"""Learning from what an older policy did, where the right answer can be worked out by hand."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, Fragment, policy_spec

OLDER = np.array([0.5, 0.25, 0.25])  # probabilities of the policy that acted


class Bandit(gym.Env[Any, Any]):
    """One step, three arms."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), 0.0, True, False, {}


def after_one_update(rewards_of_arms: list[float], rho_clip: float = 1.0) -> np.ndarray:
    """The probabilities of a policy that was uniform, after an update on each arm as often as `OLDER` takes it."""
    env = SyncVectorEnv([Bandit] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    controller = ControllerSettings(kind="mlp", hidden_size=4)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), 1, seed=0)
    for head in (policy.policy_head, policy.value_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    fragment, _ = Collector(env, policy, 4, 4, seed=0).collect()
    settings = LearnerSettings(
        num_epochs=1, num_minibatches=1, learning_rate=0.1, ent_coef=0.0, num_threads=1, vtrace_rho=rho_clip
    )
    learner = Learner(policy, settings, seed=0, total_timesteps=1000, asynchronous=True)
    learner.update([acted_by_the_older_policy(fragment, rewards_of_arms).to_arrow()])
    with torch.no_grad():
        out = policy.scan({"observation": torch.ones(1, 1, 1)}, torch.ones(1, 1, dtype=torch.bool), {})
    return out.parameters_TBA[0, 0].softmax(-1).numpy()


def acted_by_the_older_policy(fragment: Fragment, rewards_of_arms: list[float]) -> Fragment:
    B, T = fragment.actions.shape
    actions = np.repeat(np.arange(3), (OLDER * B * T).astype(int)).reshape(B, T)
    return replace(
        fragment,
        actions=actions,
        log_probs=np.log(OLDER)[actions].astype(np.float32),
        rewards=np.array(rewards_of_arms, dtype=np.float32)[actions],
    )


@pytest.mark.parametrize("reward", [1.0, -3.0])
def test_where_every_action_earns_the_same_a_uniform_policy_stays_uniform(reward: float) -> None:
    """Weighted first and then centred, what the older policy did too often would look bad: (.12, .44, .44)."""
    np.testing.assert_allclose(after_one_update([reward] * 3), 1 / 3, atol=1e-6)


def test_with_weights_that_are_not_clipped_the_older_policy_has_no_say() -> None:
    """Under the uniform policy the third arm earns the mean, so that its logit stays and the others' move apart."""
    first, second, third = np.log(after_one_update([1.0, 0.0, 0.5], rho_clip=10.0))
    assert first > third > second
    np.testing.assert_allclose(first - third, third - second, atol=0.01)
