"""sb3-contrib's RecurrentPPO on delayed cue. Run as `python -m benchmarks.peers.sb3_recurrent_ppo`.

By default the environment is stepped as one numpy batch, as ours is, and actor and critic share one LSTM, as ours
do, so that neither a Python loop over environments nor a second network is held against it. `--stock` takes what its
documentation shows instead: `make_vec_env` over single environments and the policy's own defaults.
"""

from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import measurement as m
from benchmarks.peers.threads import ThreadChoice
from mneme.envs import EnvSettings, make_vector_env


class BatchedVecEnv(VecEnv):
    """A Gymnasium vector environment with same-step autoreset as a Stable-Baselines3 one."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        self._env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions = np.zeros(self.num_envs, dtype=np.int64)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]

    def reset(self) -> np.ndarray:
        return self._env.reset(seed=self._seeds[0])[0]

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, info = self._env.step(self._actions)
        done = terminated | truncated
        if not done.any():
            return observations, rewards, done, self._no_infos
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(done):
            infos[lane] = {
                "terminal_observation": info["final_obs"][lane],
                "TimeLimit.truncated": bool(truncated[lane] and not terminated[lane]),
            }
        return observations, rewards, done, infos

    def close(self) -> None:
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self._env, attr_name)] * len(self._lanes(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the lanes are one batch: they have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("the lanes are one batch: they have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * len(self._lanes(indices))

    def _lanes(self, indices: Any) -> list[int]:
        return list(self._get_indices(indices))


class _Timing(BaseCallback):
    """An update has ended when the next rollout begins, the last one when training ends."""

    def __init__(self, stopwatch: m.Stopwatch, threads: ThreadChoice, lanes: int) -> None:
        super().__init__()
        self._stopwatch, self._threads, self._lanes = stopwatch, threads, lanes
        self._rewards = self._started = self._collecting = 0.0
        self._pending = False

    def _on_step(self) -> bool:
        self._rewards += float(self.locals["rewards"].sum())
        return True

    def _on_rollout_start(self) -> None:
        if self._pending:
            self._update_done()
        self._started = perf_counter()

    def _on_rollout_end(self) -> None:
        self._pending, self._collecting = True, perf_counter() - self._started

    def _on_training_end(self) -> None:
        self._update_done()

    def _update_done(self) -> None:
        steps, spent = self._lanes * m.SHORT.episode, {"collect": self._collecting}
        self._stopwatch.update(steps, self._lanes, self._rewards / self._lanes, spent)  # one episode a lane
        self._rewards = 0.0
        self._threads.update_done()


def main() -> None:
    """Train for `--steps` timed environment steps and print a measurement."""
    parser = m.contestant_parser(__doc__)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--num-envs", type=int, default=m.SHORT.lanes)
    parser.add_argument("--one-thread", action="store_true", help="try no more")
    args = parser.parse_args()
    task = {"cues": m.CUES, "horizon": m.SHORT.horizon}
    env: VecEnv = BatchedVecEnv(make_vector_env(EnvSettings(id=m.ENV_ID, kwargs=task), args.num_envs))
    # One LSTM and linear heads, as in our own policy; by default the critic has an LSTM and layers of its own.
    policy: dict[str, Any] = {"shared_lstm": True, "enable_critic_lstm": False, "net_arch": []}
    if args.stock:
        env, policy = make_vec_env(m.ENV_ID, args.num_envs, env_kwargs=task), {}
    settings: dict[str, Any] = {
        "n_steps": m.SHORT.episode,
        "batch_size": args.num_envs * m.SHORT.episode // m.MINIBATCHES,
        "n_epochs": m.EPOCHS,
        "learning_rate": m.LEARNING_RATE,
        "ent_coef": 0.01,
        "policy_kwargs": {"lstm_hidden_size": m.HIDDEN, **policy},
    }
    model = RecurrentPPO("MlpLstmPolicy", env, seed=args.seed, device="cpu", **settings)
    stopwatch, threads = m.Stopwatch(), ThreadChoice(torch.set_num_threads, 1 if args.one_thread else None)
    batch = args.num_envs * m.SHORT.episode
    model.learn(m.updates_for(args.steps, batch) * batch, callback=_Timing(stopwatch, threads, args.num_envs))
    parameters = sum(parameter.numel() for parameter in model.policy.parameters())
    configuration = settings | {"lanes": args.num_envs, "threads": threads.threads, "parameters": parameters}
    stopwatch.measurement(configuration, "sb3-contrib", "stable-baselines3", "gymnasium", "torch", "numpy").report()


if __name__ == "__main__":
    main()
