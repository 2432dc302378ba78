"""Agents in loops of one's own act as they do in evaluations."""

import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import mneme
from mneme.agent import load_policy
from mneme.controllers import CONTROLLERS, ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.rollout_workers import Collector, Fragment, SpaceSettings, adapter_of

LANES, STEPS = 3, 40
ROOT = Path(__file__).parents[2]
ACT = """
import sys
for package in {packages}:
    sys.modules[package] = None
import gymnasium, mneme, mneme.cli
session = mneme.load({run!r}).session()
env = gymnasium.make("mneme/DelayedCue-v0", horizon=8)
action = session.reset(*env.reset(seed=0))
while action is not None:
    action = session.predict(*env.step(action))
assert mneme.evaluate({run!r}, episodes=8).episodes == 8
raise SystemExit(mneme.cli.main(["train", "delayed_cue", "name=other"]))
"""


class Everything(gym.Env[Any, Any]):
    """A Dict with a tuple, categories and a mask, and two actions; episodes of one to four steps."""

    observation_space = spaces.Dict(
        {
            "numbers": spaces.Box(-1, 1, (2,), np.float32),
            "pair": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 255, (12, 12, 3), np.uint8))),
        }
    )
    action_space = spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([2, 2])))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 5))
        return self._observe()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        assert self.mask[action[0]]
        self.left -= 1
        observation, info = self._observe()
        return observation, float(self.left), self.left == 0, False, info

    def _observe(self) -> Any:
        random = self.np_random
        self.mask = np.ones(3, np.int8)
        self.mask[random.integers(3)] = 0
        image = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        observation = {"numbers": random.uniform(-1, 1, 2), "pair": (int(random.integers(3)), image)}
        return observation, {"action_mask": (self.mask, np.ones(4, np.int8))}


@pytest.fixture(scope="module", autouse=True)
def everything() -> Iterator[None]:
    gym.register("Everything-v0", Everything)
    yield
    del gym.registry["Everything-v0"]


def agent_of(env: Any, kind: str, settings: SpaceSettings) -> mneme.Agent:
    adapter = adapter_of(env, settings)
    controller = ControllerSettings(kind=kind, hidden_size=8)
    policy = build_policy(adapter.spec, PolicySettings(controller=controller), 5, seed=3)
    with torch.no_grad():
        policy.policy_head.weight.mul_(1000)  # else all actions are nearly alike at first, and the first is taken
    return mneme.Agent(policy, env.single_observation_space, env.single_action_space, settings)


def collected(id: str, agent: mneme.Agent, settings: SpaceSettings) -> tuple[Fragment, Any]:
    """What the collector, which evaluation runs, does; and the seeds it gave."""
    seeds: list[Any] = []
    with closing(make_vector_env(EnvSettings(id=id), LANES)) as env:
        reset = env.reset

        def noted(*, seed: Any = None, options: Any = None) -> Any:
            seeds.append(seed)
            return reset(seed=seed, options=options)

        env.reset = noted  # type: ignore[method-assign]
        collector = Collector(env, agent.policy, STEPS, STEPS, seed=5, spaces=settings, greedy=True)
        return collector.collect()[0], seeds[-1]


@pytest.mark.parametrize("kind", CONTROLLERS)
@pytest.mark.parametrize(
    ("id", "settings"),
    [
        ("mneme/Counting-v0", SpaceSettings()),
        ("Everything-v0", SpaceSettings(previous_action=True, previous_reward=True)),
        ("Everything-v0", SpaceSettings(previous_action=True, stack=3)),
    ],
)
def test_a_session_acts_as_the_collector_does(kind: str, id: str, settings: SpaceSettings) -> None:
    with closing(make_vector_env(EnvSettings(id=id), LANES)) as env:
        agent = agent_of(env, kind, settings)
        fragment, seed = collected(id, agent, settings)
        session = agent.session(env)
        action = session.reset(*env.reset(seed=seed))
        taken = []
        for _ in range(STEPS):
            columns = [np.reshape(part, (LANES, -1)) for part in (action if isinstance(action, tuple) else [action])]
            taken.append(np.concatenate(columns, axis=1))
            action = session.predict(*env.step(action))
    expected = fragment.actions.reshape(LANES, STEPS, -1)
    np.testing.assert_array_equal(np.stack(taken, axis=1), expected)
    assert id == "mneme/Counting-v0" or len(np.unique(expected)) > 1


@pytest.mark.parametrize("kind", ["gru", "mamba2", "transformer"])
def test_one_environment_is_played_as_a_vector_of_one(kind: str) -> None:
    settings = SpaceSettings(previous_action=True, previous_reward=True)
    with closing(make_vector_env(EnvSettings(id="Everything-v0"), 1)) as vector, closing(Everything()) as env:
        agent = agent_of(vector, kind, settings)
        many, alone = agent.session(vector), agent.session()
        expected = many.reset(*vector.reset(seed=[7]))
        action = alone.reset(*env.reset(seed=7))
        for _ in range(STEPS):
            assert action[0] == expected[0][0]
            np.testing.assert_array_equal(action[1], expected[1][0])
            observation, reward, terminated, truncated, info = env.step(action)
            expected = many.predict(*vector.step(expected))
            if terminated or truncated:
                action = alone.reset(*env.reset())
            else:
                action = alone.predict(observation, reward, terminated, truncated, info)


def test_a_vector_that_resets_in_the_next_step_is_played_right() -> None:
    """The final observation belongs to the old episode and is acted on in vain; the new one begins after it."""
    modes = {
        mode: SyncVectorEnv([lambda: gym.make("mneme/Counting-v0")] * LANES, autoreset_mode=mode)
        for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
    }
    same = modes[AutoresetMode.SAME_STEP]
    agent = agent_of(same, "gru", SpaceSettings())
    played = {}
    for mode, env in modes.items():
        session = agent.session(env)
        action, ended = session.reset(*env.reset(seed=0)), np.zeros(LANES, np.bool_)
        played[mode] = [[] for _ in range(LANES)]
        for _ in range(STEPS):
            for lane in np.flatnonzero(~ended):
                played[mode][lane].append(int(action[lane]))
            result = env.step(action)
            ended = (result[2] | result[3]) if mode is AutoresetMode.NEXT_STEP else np.zeros(LANES, np.bool_)
            action = session.predict(*result)
        env.close()
    for a, b in zip(*played.values(), strict=True):
        assert a[: len(b)] == b
        assert len(b) > STEPS // 2
    session = agent.session()
    session.reset(np.zeros((LANES, *same.single_observation_space.shape), np.float32))
    with pytest.raises(ValueError, match=r"give the environment: agent\.session\(env\)"):
        session.predict(
            np.zeros((LANES, *same.single_observation_space.shape), np.float32), np.zeros(LANES), np.ones(LANES, bool)
        )


def test_the_carry_is_explicit_and_calls_change_nothing() -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), LANES)) as env:
        agent = agent_of(env, "lstm", SpaceSettings())
        observation, info = env.reset(seed=0)
        _, carry = agent.act(observation, info=info)
        kept = {name: part.clone() for name, part in carry.memory.items()}
        second, after = agent.act(observation, carry)
        again, _ = agent.act(observation, carry)
        np.testing.assert_array_equal(second, again)
        assert all((carry.memory[name] == part).all() for name, part in kept.items())
        assert any((after.memory[name] != part).any() for name, part in kept.items())
        _, fresh = agent.act(observation, carry, reset=[True, False, False])
        begun = agent.act(observation)[1].memory
        for name, part in fresh.memory.items():
            assert (part[0] == begun[name][0]).all()
            assert (part[1:] == after.memory[name][1:]).all()
        rng = np.random.default_rng(0)
        sampled = {tuple(agent.act(observation, greedy=False, rng=rng)[0]) for _ in range(20)}
        assert len(sampled) > 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"observation": np.zeros((2, 2, 9))},
            r"the observation does not fit Box.*: it has shape \[2, 2, 9\], which is neither",
        ),
        ({"observation": np.zeros(9), "carry": 3}, "the carry is of 3 environments and the observation of 1"),
        ({"observation": np.full(9, np.nan)}, "the observation's part 'observation' holds nan"),
        ({"observation": (np.zeros(9), {})}, r"the observation is a tuple; .* session\.reset\(\*env\.reset\(\)\)"),
        ({"observation": np.zeros(9), "carry": {}}, "the carry is a dict; give what the last call returned"),
        ({"observation": np.zeros(9), "carry": 1}, "reads the reward of the last step; give it as reward="),
        (
            {"observation": np.zeros(9), "carry": 1, "reward": "x"},
            "reward is 'x'; it must be a number, or one for each",
        ),
        ({"observation": np.zeros(9), "carry": 1, "reward": [1.0, 2.0]}, r"of shape \[2\]; it must be a number"),
        (
            {"observation": np.zeros(9), "reset": "yes"},
            "reset is 'yes'; it must be true or false, or one for each of 1",
        ),
        ({"observation": None}, "the observation does not fit"),
        (
            {"observation": np.zeros(9), "reset": False},
            "reset is False, and there is no carry to go on with; give what",
        ),
        ({"observation": np.zeros(9), "carry": 1, "reset": False}, "reads the reward of the last step"),
        ({"observation": np.zeros(9), "rng": 3}, "rng is 3; it must be a numpy.random.Generator"),
    ],
)
def test_what_does_not_fit_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 1)) as env:
        agent = agent_of(env, "gru", SpaceSettings(previous_reward=True))
        shape = env.single_observation_space.shape
        given = dict(given)
        if isinstance(given["observation"], np.ndarray) and given["observation"].ndim == 1:
            given["observation"] = np.resize(given["observation"], shape).astype(np.float32)
        if isinstance(given.get("carry"), int):
            given["carry"] = agent.initial_carry(given["carry"])
        with pytest.raises(ValueError, match=sentence):
            agent.act(**given)


def test_an_episode_that_nobody_has_begun_is_not_gone_on_with() -> None:
    with closing(make_vector_env(EnvSettings(id="Everything-v0"), LANES)) as env:
        agent = agent_of(env, "gru", SpaceSettings())
        observation, info = env.reset(seed=0)
        for reset in (False, np.False_, [True, False, True]):
            with pytest.raises(ValueError, match="there is no carry to go on with; give what the last call returned"):
                agent.act(observation, None, reset=reset, info=info)
        begun, _ = agent.act(observation, info=info)
        for explicit, _ in (
            agent.act(observation, None, reset=True, info=info),
            agent.act(observation, None, reset=[True] * LANES, info=info),
            agent.act(observation, agent.initial_carry(LANES), reset=False, info=info),
        ):
            for mine, its in zip(explicit, begun, strict=True):
                np.testing.assert_array_equal(mine, its)
        session = agent.session(env)  # whose first call begins one by itself
        for mine, its in zip(session.predict(observation, info=info), begun, strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(
    ("observation", "sentence"),
    [
        (
            np.zeros(3),
            r"part 'numbers' is missing: what is given is an array of shape \[3\]; give a dict with that part",
        ),
        (3, "part 'numbers' is missing: what is given is a int; give a dict with that part"),
        ({}, "part 'numbers' is missing: what is given is a dict of nothing; give a dict with that part"),
        ({"numbers": np.zeros(2)}, "part 'pair' is missing: what is given is a dict of 'numbers'; give a dict"),
        ({"numbers": np.zeros((1, 2))}, "part 'pair' is missing: what is given is a dict of 'numbers'; give a dict"),
        (
            {"numbers": np.zeros(2), "pair": (1,)},
            r"part 'pair\.1' is missing: what is given in 'pair' is a tuple of 1; give a tuple with that part",
        ),
    ],
)
def test_a_part_that_an_observation_lacks_is_named(observation: Any, sentence: str) -> None:
    with closing(make_vector_env(EnvSettings(id="Everything-v0"), 1)) as env:
        agent = agent_of(env, "gru", SpaceSettings())
        mask = np.ones((1, 7), np.bool_)
        with pytest.raises(ValueError, match=rf"^the observation does not fit Dict\(.*\): its {sentence}"):
            agent.act(observation, None, reset=True, info={"action_mask": mask})


def test_a_session_takes_what_its_agent_was_trained_on() -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 3)) as env:
        agent = agent_of(env, "gru", SpaceSettings())
        with pytest.raises(ValueError, match="env is 'x'; give the vector environment that the agent plays in"):
            agent.session("x")
        with pytest.raises(ValueError, match="and the agent was trained on Box"):
            agent.session(gym.make("CartPole-v1"))
        with pytest.raises(ValueError, match="seed is -1; it must be a whole number"):
            agent.session(seed=-1)
        session = agent.session(env)
        observation, info = env.reset(seed=0)
        session.reset(observation, info)
        for wrong, sentence in (
            ({"terminated": "no"}, "terminated is 'no'; it must be true or false"),
            ({"terminated": True}, "give one for each of 3 environments"),
            ({"truncated": np.array([True, False])}, r"truncated is .*, of shape \[2\]"),
        ):
            with pytest.raises(ValueError, match=sentence):
                session.predict(observation, np.zeros(3), **wrong)


class OverAtLast(gym.Env[Any, Any]):
    """Allows one action a step, and none once it is over: then its mask is empty, or missing."""

    observation_space, action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(3)

    def __init__(self, missing: bool = False) -> None:
        self.missing = missing

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(1, np.float32), {"action_mask": self._mask()}

    def step(self, action: Any) -> Any:
        assert action == self.t % 3
        self.t += 1
        over = self.t == 4
        info = {} if over and self.missing else {"action_mask": np.zeros(3, np.int8) if over else self._mask()}
        return np.ones(1, np.float32), 1.0, over, False, info

    def _mask(self) -> np.ndarray:
        return np.eye(3, dtype=np.int8)[self.t % 3]


@pytest.mark.parametrize("missing", [False, True])
def test_where_an_episode_is_over_there_is_nothing_to_choose(missing: bool) -> None:
    vector = SyncVectorEnv([lambda: OverAtLast(missing)] * LANES, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = agent_of(vector, "gru", SpaceSettings())
    session = agent.session(vector)
    action = session.reset(*vector.reset(seed=0))
    for _ in range(STEPS):
        action = session.predict(*vector.step(action))
    env, session = OverAtLast(missing), agent.session()
    action = session.reset(*env.reset())
    for _ in range(3):
        action = session.predict(*env.step(action))
        assert action is not None
    assert session.predict(*env.step(action)) is None
    assert session.reset(*env.reset()) == 0


def test_an_agent_goes_to_other_processes() -> None:
    with closing(make_vector_env(EnvSettings(id="Everything-v0"), LANES)) as env:
        agent = agent_of(env, "lstm", SpaceSettings(previous_action=True))
        observation, info = env.reset(seed=0)
        twin = pickle.loads(pickle.dumps(agent))
        for mine, its in zip(agent.act(observation, info=info)[0], twin.act(observation, info=info)[0], strict=True):
            np.testing.assert_array_equal(mine, its)


def test_a_runs_agent_is_loaded_with_its_weights(tmp_path: Path) -> None:
    run = mneme.train(
        "delayed_cue", f"checkpoint.root={tmp_path}", "train.total_timesteps=2000", "env.kwargs.horizon=8",
        "tracking.enabled=false", "train.evaluation_episodes=8", local=True, progress=False, name="run",
    )  # fmt: skip
    agent = mneme.load(run.folder)
    loaded = load_policy(run.folder)
    assert loaded.version == run.history()["weights_version"].to_pylist()[-2]
    assert mneme.evaluate(agent, episodes=8).episodes == 8
    np.testing.assert_array_equal(mneme.evaluate(agent, episodes=8).returns, mneme.evaluate(run, episodes=8).returns)
    with closing(gym.make("mneme/DelayedCue-v0", horizon=8)) as env:
        session = agent.session()
        action = session.reset(*env.reset(seed=0))
        assert env.action_space.contains(action)


def test_who_only_acts_needs_nothing_that_trains(tmp_path: Path) -> None:
    """A fresh interpreter without Ray, MLflow and the rest of the extra `train`, which `mneme train` then names."""
    run = mneme.train(
        "delayed_cue", f"checkpoint.root={tmp_path}", "train.total_timesteps=1", "env.kwargs.horizon=8",
        "tracking.enabled=false", "train.evaluation_episodes=1", local=True, progress=False, name="run",
    )  # fmt: skip
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    packages = [re.split(r"[^\w-]", package)[0].replace("pillow", "PIL") for package in extra]
    assert {"ray", "mlflow"} < set(packages)
    code = ACT.format(packages=packages, run=str(run.folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "mneme: this needs ray, which is not installed: pip install mneme-rl[train]" in done.stderr
