"""Environments that a notebook or a script registers itself, in the processes that do not run it."""

import importlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import gymnasium as gym
import pytest

from mneme.envs import EnvSettings, check_sendable, make_vector_env, register_missing, registered_here

PROGRAM = """
import gymnasium as gym
import numpy as np
from mneme.envs import EnvSettings, make_vector_env

class Inner(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, 3.0, False, False, {}

gym.register("Inner-v0", entry_point="__main__:Inner")
gym.register("Outer-v0", entry_point=lambda: gym.wrappers.TransformReward(gym.make("Inner-v0"), lambda r: 2 * r))
for id in ("Inner-v0", "Outer-v0"):
    env = make_vector_env(EnvSettings(id=id, vectorization_mode="async"), 2)
    env.reset(seed=0)
    print(env.step(np.zeros(2, np.int64))[1].tolist())
    env.close()
"""


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def test_subprocesses_know_what_a_program_registers(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[3.0, 3.0]\n[6.0, 6.0]\n", "")


def test_ids_of_another_process_are_registered_where_they_are_missing() -> None:
    gym.register("Mine-v0", entry_point=lambda: gym.make("CartPole-v1"), max_episode_steps=7)
    registered = registered_here()
    del gym.registry["Mine-v0"]
    cart_pole = gym.registry["CartPole-v1"]
    register_missing(registered)
    assert make_vector_env(EnvSettings(id="Mine-v0"), 1).reset(seed=0)[0].shape == (1, 4)
    assert gym.registry["Mine-v0"].max_episode_steps == 7
    assert gym.registry["CartPole-v1"] is cart_pole


def test_an_id_whose_code_is_not_in_this_process_costs_the_others_nothing_and_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_there.py").write_text("class Task: ...")
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path)
        for id in ("Before-v0", "Between-v0", "Beyond-v0"):
            entry_point = importlib.import_module("only_there").Task if id == "Between-v0" else lambda: None
            gym.register(id, entry_point=entry_point)
        registered = registered_here()
        del sys.modules["only_there"]
    for id in ("Before-v0", "Between-v0", "Beyond-v0"):
        del gym.registry[id]
    register_missing(registered)
    assert {"Before-v0", "Beyond-v0"} < gym.registry.keys()
    with pytest.raises(ValueError, match="^env.id is 'Between-v0', whose code cannot be loaded: .*only_there"):
        make_vector_env(EnvSettings(id="Between-v0"), 1)


def test_what_cannot_be_pickled_is_refused_if_it_is_the_task_and_else_left_out() -> None:
    lock = threading.Lock()
    gym.register("Mine-v0", entry_point=lambda: gym.make("CartPole-v1", lock=lock))
    assert "Mine-v0" not in registered_here()
    check_sendable("CartPole-v1")
    check_sendable("some_package:Mine-v0")  # which other processes import
    for refuse in (
        lambda: check_sendable("Mine-v0"),
        lambda: make_vector_env(EnvSettings(id="Mine-v0", vectorization_mode="async"), 1),
    ):
        with pytest.raises(ValueError, match=r"^env.id is 'Mine-v0', whose code cannot be sent .*lock.*Mine-v0$"):
            refuse()


def test_what_the_main_module_is_said_to_hold_is_looked_up_there() -> None:
    gym.register("Mine-v0", entry_point="__main__:Absent")
    with pytest.raises(ValueError, match="^env.id is 'Mine-v0', whose code cannot be loaded: AttributeError"):
        make_vector_env(EnvSettings(id="Mine-v0"), 1)
    assert all(isinstance(cloudpickle.loads(spec).id, str) for spec in registered_here().values())
