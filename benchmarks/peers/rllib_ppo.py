"""RLlib's PPO with an LSTM (new API stack) on delayed cue. Run as `python -m benchmarks.peers.rllib_ppo`.

The environment is stepped as one numpy batch, as ours is, so that no Python loop over environments is held against it.
"""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from gymnasium.vector import AutoresetMode
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

from benchmarks import measurement as m
from benchmarks.peers.threads import ThreadChoice
from mneme.envs import EnvSettings, make_vector_env
from mneme.experiments.machine import cores


class NextStepReset(gym.vector.VectorEnv):
    """A same-step-autoreset environment whose lanes end together, with the next-step autoreset that RLlib expects."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        self._env = env
        self.num_envs = env.num_envs
        self.single_observation_space, self.observation_space = env.single_observation_space, env.observation_space
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self.metadata = env.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._first: np.ndarray | None = None  # observations of the next episodes, once these are over

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._first = None
        return self._env.reset(seed=seed, options=options)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._first is not None:
            first, self._first = self._first, None
            nothing = np.zeros(self.num_envs, dtype=np.bool_)
            return first, np.zeros(self.num_envs), nothing, nothing.copy(), {}
        observations, rewards, terminated, truncated, info = self._env.step(actions)
        done = terminated | truncated
        if not done.any():
            return observations, rewards, terminated, truncated, {}
        if not done.all():
            raise ValueError(
                f"{done.sum()} of {self.num_envs} lanes ended; this adapter needs all of them to end together"
            )
        self._first = observations
        return np.stack(list(info["final_obs"])), rewards, terminated, truncated, {}


def make_env(config: dict[str, Any]) -> gym.Env | gym.vector.VectorEnv:
    """Make the environment for RLlib: a single one to look at, or as many lanes as it names."""
    kwargs = {"cues": m.CUES, "horizon": m.SHORT.horizon}
    if "num_envs" not in config:
        return gym.make(m.ENV_ID, **kwargs)
    return NextStepReset(make_vector_env(EnvSettings(id=m.ENV_ID, kwargs=kwargs), config["num_envs"]))


def main() -> None:
    """Train for `--steps` timed environment steps and print a measurement."""
    args = m.contestant_parser(__doc__).parse_args()
    ray.init(
        address="local", num_cpus=cores(), include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    register_env(m.ENV_ID, make_env)
    # RLlib adds a step to each episode for bootstrapping. Sequences that are one longer than the episode take it in;
    # otherwise it becomes a sequence of its own, padded to full length, and doubles the learner's work.
    length = m.SHORT.episode + 1
    model = {
        "use_lstm": True,
        "lstm_cell_size": m.HIDDEN,
        "max_seq_len": length,
        "fcnet_hiddens": [m.CUES + 1],  # RLlib insists on a layer before the LSTM: as small as the observation
        "vf_share_layers": True,
    }
    training = {
        "train_batch_size_per_learner": m.SHORT.batch,
        "minibatch_size": m.SHORT.lanes // m.MINIBATCHES * length,
        "num_epochs": m.EPOCHS,
        "lr": m.LEARNING_RATE,
        "entropy_coeff": 0.01,
    }
    sampling = {
        "num_env_runners": 0,
        "num_envs_per_env_runner": m.SHORT.lanes,
        "rollout_fragment_length": m.SHORT.episode,
    }
    algorithm = (
        PPOConfig()
        .environment(m.ENV_ID)
        .env_runners(gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT, **sampling)
        .learners(num_learners=0, num_gpus_per_learner=0)
        .training(**training)
        .rl_module(model_config=DefaultModelConfig(**model))
        .debugging(seed=args.seed, log_level="ERROR")
        .build_algo()
    )
    stopwatch, threads = m.Stopwatch(), ThreadChoice(torch.set_num_threads)
    parameters = 0
    for _ in range(m.updates_for(args.steps)):
        result = algorithm.train()
        runners = result["env_runners"]
        steps, episodes = int(runners["num_env_steps_sampled"]), float(runners["num_episodes"])
        stopwatch.update(steps, episodes, float(runners["episode_return_mean"]))
        threads.update_done()
        parameters = parameters or int(result["learners"]["default_policy"]["num_trainable_parameters"])
    configuration = {**sampling, **training, "model": model, "threads": threads.threads, "parameters": parameters}
    stopwatch.measurement(configuration, "ray", "gymnasium", "torch", "numpy").report()
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
