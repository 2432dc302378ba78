"""Collect, learn, load: training without the service, from its parts. `python docs/examples/train_loop.py`."""

import torch

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, policy_spec


def train(total_timesteps: int, horizon: int = 16) -> float:
    """The success rate in the last fragment of a GRU that was trained for so many environment steps."""
    torch.set_num_threads(1)
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": horizon}), num_envs=128)
    settings = PolicySettings(controller=ControllerSettings(kind="gru"))
    acting, learning = (build_policy(policy_spec(env), settings, horizon, seed=0) for _ in range(2))
    collector = Collector(env, acting, length=horizon + 1, carry_stride=horizon + 1, seed=0)
    learner = Learner(learning, LearnerSettings(mode="full", gae_lambda=0.0), seed=0, total_timesteps=total_timesteps)
    success = 0.0
    while learner.env_steps < total_timesteps:
        learner.weights().load_into(acting)
        fragment, stats = collector.collect(learner.version)
        learner.update([fragment.to_arrow()])
        success = float(stats.successes.mean())
    return success


if __name__ == "__main__":
    print(f"success {train(120_000):.1%}")
