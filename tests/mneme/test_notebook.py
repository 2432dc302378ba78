"""Training on what a notebook defines and registers itself, on a real Ray."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

from mneme.configuration.config import load_config
from mneme.controllers.gru import GruController
from mneme.distributed.config import ConfigError
from mneme.training import train

PROGRAM = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from mneme.configuration.config import parse_config
from mneme.training import train

class Base(gym.Env):
    observation_space, action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, length=5):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t >= self.length, False, {}

gym.register("Base-v0", entry_point="__main__:Base")

def doubled(**kwargs):
    return gym.wrappers.TransformReward(gym.make("Base-v0", **kwargs), lambda reward: 2 * reward)

gym.register("Mine-v0", entry_point=doubled)
print(train(parse_config({
    "env": {"id": "Mine-v0", "success_return": 1.0},
    "curriculum": {"stages": [{"length": 2}]},
    "rollout": {"num_envs": 4, "num_workers": 2, "unroll_length": 16},
    "learner": {"num_minibatches": 1, "num_epochs": 1, "num_threads": 1},
    "policy": {"controller": {"hidden_size": 8, "backend": "torch"}},
    "train": {"total_timesteps": 128, "evaluation_episodes": 4},
    "service": {"max_restarts": 0},
    "tracking": {"enabled": False},
})).evaluation.mean_return)
"""


@pytest.mark.ray
def test_what_a_program_registers_trains_under_ray_and_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1:] == ["10.0"], done.stderr


def test_code_that_rays_workers_cannot_have_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = (n for n in ())  # a generator cannot be pickled
    task = EnvSpec("Mine-v0", lambda: gym.make("CartPole-v1") if held else None)
    monkeypatch.setitem(gym.registry, "Mine-v0", task)
    monkeypatch.setattr("mneme.training._execute", None)
    with pytest.raises(ConfigError, match="^env.id is 'Mine-v0', whose code cannot be sent to other processes"):
        train(load_config(None, ["env.id=Mine-v0"]))


def test_a_controller_that_rays_workers_cannot_have_is_refused_under_ray_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(GruController):
        held = (n for n in ())  # a generator cannot be pickled

    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    monkeypatch.setattr("mneme.training._execute", lambda *_: "trained")
    config = load_config(None, ["policy.controller.kind=__main__:Mine"])
    with pytest.raises(ConfigError, match="^policy.controller.kind is '__main__:Mine', whose code cannot be sent"):
        train(config, progress=False)
    assert train(config, local=True, progress=False) == "trained"
