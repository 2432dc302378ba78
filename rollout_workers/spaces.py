"""What a policy must fit: the environment's spaces as the policy's specification."""

from typing import Any

import gymnasium as gym
import numpy as np

from controllers import PolicySpec


def policy_spec(env: gym.vector.VectorEnv[Any, Any, Any]) -> PolicySpec:
    """The policy specification of an environment's single spaces.

    Raises:
        ValueError: a space that no policy here can handle.
    """
    observation, action = env.single_observation_space, env.single_action_space
    if not isinstance(observation, gym.spaces.Box) or len(observation.shape) != 1:
        raise ValueError(
            f"the observation space {observation} is not supported; wrap the environment so that it observes a flat "
            f"Box (gymnasium.wrappers.FlattenObservation)"
        )
    if observation.dtype != np.float32:
        raise ValueError(
            f"the observation space {observation} has dtype {observation.dtype}; wrap the environment so that it "
            f"observes float32"
        )
    if not isinstance(action, gym.spaces.Discrete) or action.start != 0:
        raise ValueError(f"the action space {action} is not supported; use an environment with Discrete actions from 0")
    return PolicySpec(observation_size=observation.shape[0], actions=int(action.n))
