"""One step of an agent between arrays that have names, for programs that know nothing else of it.

Legend: B environments.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from mneme.agent import Agent, AgentCarry
from mneme.controllers import ACTION_MASK
from mneme.rollout_workers.spaces import PREVIOUS_REWARD, leaves_of, nested

RESET = "reset"
_CARRY, _ACTION = "carry.", "action"
_LAST_ACTION = f"{_CARRY}previous_action"


class Port(NamedTuple):
    """An array that goes in or comes out."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]  # without the environments, B of them, which come first


class NamedStep:
    """An agent as a pure function of named arrays. `carry.NAME` is what the last step gave as `next_carry.NAME`.

    Besides the carry it takes the parts of the environment's own observation, by their paths as in "pair.0", or
    "observation" where it has none; `reset`, true where an episode begins, so that the carry is not looked at; and,
    for an agent that reads them, `previous_reward` and `action_mask`. It gives `action` as the environment takes it,
    or its parts as "action.0".

    Args:
        agent: what acts.

    Raises:
        ValueError: a part of the observation has the name of another input.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent, spec = agent, agent.policy.spec
        self._leaves = list(leaves_of(agent.observation_space))
        inputs = [_port(leaf.name, leaf.space) for leaf in self._leaves]
        inputs.append(Port(RESET, np.dtype(np.bool_), ()))
        if PREVIOUS_REWARD in spec.observations:
            inputs.append(Port(PREVIOUS_REWARD, np.dtype(np.float32), ()))
        if spec.masked and not any(leaf.path[:1] == (ACTION_MASK,) for leaf in self._leaves):
            inputs.append(Port(ACTION_MASK, np.dtype(np.bool_), (spec.actions.mask_size,)))
        memory, action_B = agent.initial_carry()
        carry = {f"{_CARRY}{name}": part.numpy() for name, part in memory.items()}
        if spec.previous_action:
            carry[_LAST_ACTION] = action_B
        parts = [Port(name, array.dtype, array.shape[1:]) for name, array in carry.items()]
        self.inputs = (*inputs, *parts)
        """What goes in."""
        actions = [_port(_acted(leaf.path), leaf.space) for leaf in leaves_of(agent.action_space)]
        self.outputs = (*actions, *(part._replace(name=f"next_{part.name}") for part in parts))
        """What comes out."""
        names = [port.name for port in self.inputs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"a part of the observation is named {twice[0]!r}, as something else is; rename the part")

    def example(self) -> dict[str, np.ndarray]:
        """Inputs of one environment whose episode begins: nothing is seen, and every action is allowed."""
        allowed = (RESET, ACTION_MASK)
        return {
            port.name: np.full((1, *port.shape), port.name.partition(".")[0] in allowed, port.dtype)
            for port in self.inputs
        }

    def __call__(self, arrays: Mapping[str, np.ndarray], greedy: bool = True) -> dict[str, np.ndarray]:
        """One step of B environments.

        Args:
            arrays: as `inputs` says, [B, ...] each.
            greedy: the most probable actions instead of sampled ones.

        Raises:
            ValueError: an array is missing or does not fit; one sentence.
        """
        agent = self._agent
        if missing := [port.name for port in self.inputs if port.name not in arrays]:
            raise ValueError(f"{missing[0]!r} is missing; give {', '.join(port.name for port in self.inputs)}")
        given = {port.name: np.asarray(arrays[port.name], port.dtype) for port in self.inputs}
        memory = {
            name.removeprefix(_CARRY): torch.from_numpy(array.copy())
            for name, array in given.items()
            if name.startswith(_CARRY) and name != _LAST_ACTION
        }
        last_B = given.get(_LAST_ACTION, agent.initial_carry(len(given[RESET])).action_B)
        action, after = agent.act(
            nested(agent.observation_space, iter([given[leaf.name] for leaf in self._leaves])),
            AgentCarry(memory, last_B),
            reset=given[RESET],
            info={ACTION_MASK: given[ACTION_MASK]} if ACTION_MASK in given else None,
            reward=given.get(PREVIOUS_REWARD),
            greedy=greedy,
        )
        acted = {_acted(leaf.path): leaf.of(action) for leaf in leaves_of(agent.action_space)}
        carry = {f"next_{_CARRY}{name}": part.numpy() for name, part in after.memory.items()}
        if _LAST_ACTION in given:
            carry[f"next_{_LAST_ACTION}"] = after.action_B
        return acted | carry


def _port(name: str, space: gym.Space[Any]) -> Port:
    assert space.dtype is not None and space.shape is not None  # as of every space that an agent reads
    return Port(name, np.dtype(space.dtype), space.shape)


def _acted(path: tuple[str | int, ...]) -> str:
    return ".".join((_ACTION, *map(str, path)))
