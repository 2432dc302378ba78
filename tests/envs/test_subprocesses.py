"""Lanes in subprocesses: they play as in one process, know nothing of the main program, and may die."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from mneme.envs import EnvironmentFailure, EnvSettings, TaskFacts, facts_of, failures_in, make_vector_env

FACTS = TaskFacts(3, None, 1.0, 0.5, 0.5, 1.0)


class Obedient(gym.Env[np.ndarray, np.int64]):
    """Episodes of three steps of a random number. Action 1 raises, and 2 ends the process."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(3)
    facts = FACTS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: np.int64) -> Any:
        if action == 1:
            raise RuntimeError("boom")
        if action == 2:
            os._exit(3)
        self.t += 1
        return self.observe(), 1.0, self.t == 3, False, {}

    def observe(self) -> np.ndarray:
        return self.np_random.random(1, np.float32)


class Wordy(Obedient):
    """Observes a word too, which no shared memory holds."""

    observation_space = spaces.Dict({"number": Obedient.observation_space, "word": spaces.Sequence(spaces.Discrete(2))})

    def observe(self) -> Any:
        return {"number": super().observe(), "word": (1, 0)}


class OnlyHere(Obedient):
    """Cannot be made in another process."""

    def __init__(self, pid: int) -> None:
        if pid != os.getpid():
            os._exit(4)


@pytest.fixture(params=[Obedient])
def task(request: pytest.FixtureRequest) -> Iterator[str]:
    gym.register("mneme-test/Task-v0", entry_point=request.param)
    yield "mneme-test/Task-v0"
    del gym.registry["mneme-test/Task-v0"]


def test_lanes_play_as_they_do_in_one_process(task: str) -> None:
    runs = []
    for vectorization in ("sync", "async"):
        env = make_vector_env(EnvSettings(id=task, vectorization_mode=vectorization, max_failures=9), 2)
        assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert facts_of(env) == FACTS
        observation, _ = env.reset(seed=[2**62, 5])
        run = [observation]
        failures = []
        for t in range(8):
            *found, info = env.step(np.array([0, t == 4]))
            run += [*found, sorted(info), *info.get("final_obs", ())]
            failures.append(failures_in(info))
        runs.append(run)
        sentence = "the environment mneme-test/Task-v0 failed at step 1 of an episode: RuntimeError: boom"
        assert failures == [{}] * 4 + [{1: sentence}] + [{}] * 3
        env.close()
    np.testing.assert_equal(runs[0], runs[1])


PROGRAM = """
import sys
import wave  # stands for torch and Ray
import gymnasium as gym
import numpy as np
from mneme.envs import EnvSettings, make_vector_env

class Task(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, float("wave" in sys.modules), False, False, {}

print("started")
gym.register("Task-v0", entry_point=Task)
env = make_vector_env(EnvSettings(id="Task-v0", vectorization_mode="async"), 2)
env.reset(seed=0)
print(env.step(np.zeros(2, np.int64))[1].tolist(), sys.modules["__main__"].Task is Task)
env.close()
"""


def test_the_package_of_an_id_is_imported_in_subprocesses_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package.py").write_text(
        "import gymnasium\n"
        'gymnasium.register("Outer-v0", entry_point="some_module:make")\n'
        'gymnasium.register("Inner-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")\n'
    )
    (tmp_path / "some_module.py").write_text('import gymnasium\nmake = lambda: gymnasium.make("Inner-v0")\n')
    monkeypatch.syspath_prepend(tmp_path)
    env = make_vector_env(EnvSettings(id="some_package:Outer-v0", vectorization_mode="async"), 1)
    assert env.reset(seed=0)[0].shape == (1, 4)
    env.close()
    del gym.registry["Outer-v0"], gym.registry["Inner-v0"]


def test_subprocesses_do_not_run_the_main_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "started\n[0.0, 0.0] True\n", done.stderr


@pytest.mark.parametrize("task", [Wordy], indirect=True)
def test_observations_that_shared_memory_cannot_hold_arrive(task: str) -> None:
    env = make_vector_env(EnvSettings(id=task, vectorization_mode="async"), 2)
    observation, _ = env.reset(seed=0)
    assert observation["word"] == ((1, 0), (1, 0))
    assert observation["number"].shape == (2, 1)
    env.close()


@pytest.mark.filterwarnings("error")
def test_the_traceback_comes_out_of_the_subprocess_once(task: str) -> None:
    env = make_vector_env(EnvSettings(id=task, vectorization_mode="async", max_failures=1), 2)
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailure, match=r"failed at step 0 of an episode: RuntimeError: boom") as caught:
        env.step(np.array([0, 1]))
    assert 'raise RuntimeError("boom")' in str(caught.value)
    env.close()


def test_a_subprocess_that_dies_ends_the_others(task: str) -> None:
    env = make_vector_env(EnvSettings(id=task, vectorization_mode="async"), 2)
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailure, match=r"subprocess died \(exit codes by lane: \{1: 3\}\)"):
        env.step(np.array([0, 2]))
    env.close()
    for process in env.processes:
        process.join(10)
        assert not process.is_alive()


@pytest.mark.parametrize("task", [OnlyHere], indirect=True)
def test_an_environment_that_cannot_be_made_in_a_subprocess_is_refused(task: str) -> None:
    settings = EnvSettings(id=task, kwargs={"pid": os.getpid()}, vectorization_mode="async")
    with pytest.raises(ValueError, match="refuses env.kwargs .*: EnvironmentFailure: an environment's subprocess died"):
        make_vector_env(settings, 1)


class Parent(Obedient):
    """Has two processes of its own, and observes their numbers."""

    observation_space = spaces.Box(0, 2**31, (2,), np.float64)

    def __init__(self) -> None:
        self.child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        self.child.start()
        self.program = subprocess.Popen(["sleep", "60"])

    def close(self) -> None:
        self.child.terminate()
        self.program.terminate()

    def observe(self) -> np.ndarray:
        return np.array([self.child.pid, self.program.pid], np.float64)


class UnmakeableSecond(Obedient):
    def __init__(self, lane: int) -> None:
        if lane == 1:
            sys.exit("no licence left")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def end(pids: list[int]) -> bool:
    """Whether all of these end."""
    for _ in range(200):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("task", [Parent], indirect=True)
@pytest.mark.parametrize("by", ["close", "death"])
def test_lanes_may_have_processes_of_their_own_which_end_with_them(task: str, by: str) -> None:
    env = make_vector_env(EnvSettings(id=task, vectorization_mode="async"), 2)
    pids = env.reset(seed=0)[0].astype(int).ravel().tolist()
    assert all(map(alive, pids))
    if by == "close":
        env.close()
    else:
        with pytest.raises(EnvironmentFailure, match="subprocess died"):
            env.step(np.array([0, 2]))
    assert end(pids)


ORPHANS = """
import os, signal
from mneme.envs import EnvSettings, make_vector_env
import tests.envs.test_subprocesses as here
import gymnasium as gym

gym.register("Parent-v0", entry_point=here.Parent)
env = make_vector_env(EnvSettings(id="Parent-v0", vectorization_mode="async"), 2)
print(*env.reset(seed=0)[0].astype(int).ravel(), *[process.pid for process in env.processes], flush=True)
how = {how}
if how:
    os.kill(os.getpid(), how)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, 0])
def test_lanes_and_their_processes_end_with_the_program(tmp_path: Path, how: int) -> None:
    (tmp_path / "program.py").write_text(ORPHANS.replace("{how}", str(int(how))))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120,
    )  # fmt: skip
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 6
    assert end(pids)


@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("task", [UnmakeableSecond], indirect=True)
def test_a_lane_that_cannot_be_made_says_why(task: str) -> None:
    settings = EnvSettings(id=task, kwargs={"lane": "{lane}"}, vectorization_mode="async")
    with pytest.raises(ValueError, match="EnvironmentFailure: lane 1 cannot be made: SystemExit: no licence left"):
        make_vector_env(settings, 2)
