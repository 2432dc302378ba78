"""An agent's step between named arrays is the agent's own step."""

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import mneme
import tests.environments  # noqa: F401  registers what is played
from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.named_step import NamedStep
from mneme.rollout_workers import SpaceSettings, adapter_of

LANES, STEPS = 3, 12


def agent_of(env: Any, settings: SpaceSettings, kind: str = "gru") -> mneme.Agent:
    controller = ControllerSettings(kind=kind, hidden_size=8, num_layers=2)
    policy = build_policy(adapter_of(env, settings).spec, PolicySettings(controller=controller), 5, seed=3)
    with torch.no_grad():
        policy.policy_head.weight.mul_(1000)  # else all actions are nearly alike at first, and the first is taken
    return mneme.Agent(policy, env.single_observation_space, env.single_action_space, settings)


@pytest.mark.parametrize("kind", ["gru", "mamba2"])
def test_it_acts_as_a_session_does_on_every_kind_of_space(kind: str) -> None:
    settings = SpaceSettings(previous_action=True, previous_reward=True)
    task = EnvSettings(id="mneme-tests/Everything-v0", kwargs={"masked": True})
    with closing(make_vector_env(task, LANES)) as env:
        agent = agent_of(env, settings, kind)
        step, session = NamedStep(agent), agent.session(env)
        assert [port.name for port in step.inputs][:8] == [
            "image", "nested.0", "nested.1", "nested.2", "numbers", "reset", "previous_reward", "action_mask"
        ]  # fmt: skip
        given = {name: np.repeat(array, LANES, axis=0) for name, array in step.example().items()}
        observation, info = env.reset(seed=5)
        reward, ended, begins = np.zeros(LANES), np.zeros(LANES, bool), np.ones(LANES, bool)
        choices = set()
        for time in range(STEPS):
            chosen = session.predict(observation, reward, ended, np.zeros(LANES, bool), info)
            given |= {f"nested.{index}": part for index, part in enumerate(observation["nested"])}
            given |= {name: observation[name] for name in ("image", "numbers")}
            given |= {"reset": begins, "previous_reward": reward, "action_mask": info["action_mask"]}
            after = step(given)
            parts = {f"more.{index}": part for index, part in enumerate(chosen["more"])}
            for name, part in ({"choice": chosen["choice"], "force": chosen["force"]} | parts).items():
                np.testing.assert_array_equal(after[f"action.{name}"], part, err_msg=f"{name} at {time}")
            assert {port.name: (port.dtype, port.shape) for port in step.outputs} == {
                name: (array.dtype, array.shape[1:]) for name, array in after.items()
            }
            given |= {name.removeprefix("next_"): array for name, array in after.items() if name.startswith("next_")}
            choices |= set(chosen["force"].ravel().tolist())
            observation, reward, terminated, truncated, info = env.step(chosen)
            begins = ended = terminated | truncated  # environments reset in the same step
        assert len(choices) > 3, "memory, or what is seen, changes what is done"


def test_memory_goes_in_and_comes_out_and_a_reset_forgets_it() -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 1)) as env:
        step = NamedStep(agent_of(env, SpaceSettings()))
    seen = step.example() | {"observation": np.ones((1, 3), np.float32)}
    first = step(seen)
    carried = {name.removeprefix("next_"): array for name, array in first.items() if name.startswith("next_")}
    goes_on = step(seen | {"reset": np.zeros(1, bool)} | carried)
    begins = step(seen | carried)
    for name in carried:
        assert not np.array_equal(goes_on[f"next_{name}"], first[f"next_{name}"])
        np.testing.assert_array_equal(begins[f"next_{name}"], first[f"next_{name}"])


def test_actions_are_sampled_where_that_is_asked_for() -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 1)) as env:
        agent = agent_of(env, SpaceSettings())
    with torch.no_grad():
        agent.policy.policy_head.weight.zero_()
    step = NamedStep(agent)
    many = {name: np.repeat(array, 200, axis=0) for name, array in step.example().items()}
    assert len(np.unique(step(many)["action"])) == 1
    assert len(np.unique(step(many, greedy=False)["action"])) > 1


def test_what_does_not_fit_is_one_sentence() -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 1)) as env:
        step = NamedStep(agent_of(env, SpaceSettings()))
    with pytest.raises(ValueError, match=r"'carry\.h_0' is missing; give observation, reset, carry\.h_0"):
        step({"observation": np.zeros((1, 4)), "reset": np.ones(1, bool)})

    class Taken(gym.Env[Any, Any]):
        observation_space = spaces.Dict({"reset": spaces.Discrete(2)})
        action_space = spaces.Discrete(2)

        def reset(self, **_: Any) -> Any:
            return {"reset": 0}, {}

    with closing(gym.vector.SyncVectorEnv([Taken])) as env, pytest.raises(ValueError, match="is named 'reset'"):
        NamedStep(agent_of(env, SpaceSettings()))
