"""Facts known about a task beforehand: its horizon, and the returns to compare agents with."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import SyncVectorEnv


@dataclass(frozen=True)
class TaskFacts:
    """Known facts of a task; returns are undiscounted sums over one episode."""

    memory_horizon: int
    """Most steps between seeing something and having to use it; 0 where nothing need be remembered."""

    episode_length: int | None
    """Steps in every episode, or None where episodes differ."""

    optimal_return: float
    """Expected return of the best policy that remembers everything."""

    memoryless_return: float
    """Expected return of the best policy that sees the current observation only."""

    chance_return: float
    """Expected return of uniformly random actions."""

    success_return: float
    """An episode succeeds when its return reaches this."""

    def normalized_return(self, mean_return: float) -> float:
        """The share of memory's possible gain that was achieved: 0 at the memoryless return, 1 at the optimal one,
        below 0 for a return below the memoryless one; NaN where memory gains nothing."""
        gain = self.optimal_return - self.memoryless_return
        return (mean_return - self.memoryless_return) / gain if gain > 0 else math.nan


def facts_of(env: Any) -> TaskFacts | None:
    """The facts that an environment (single or vector, wrapped or not) declares as `facts`, or None.

    A spec's `reward_threshold` is not used: it bounds an average over episodes and says nothing about one.
    """
    base = env.unwrapped
    facts = getattr(base, "facts", None)
    if isinstance(facts, TaskFacts):
        return facts
    return facts_of(base.envs[0]) if isinstance(base, SyncVectorEnv) else None


def horizon_of(env: Any, kwargs: Mapping[str, Any]) -> tuple[str, int] | None:
    """The argument of an environment that is its horizon, and its value.

    Args:
        env: single, or a vector environment in this process; it may be wrapped.
        kwargs: the arguments that it was made with, besides those of its registration.

    Returns:
        None where its class names none as `horizon_argument`, or it is not known what it was.
    """
    base = env.unwrapped
    if isinstance(base, SyncVectorEnv):
        return horizon_of(base.envs[0], kwargs)
    form = getattr(base, "vector_class", type(base))  # of which a single one of Mneme's own takes the arguments
    argument = getattr(form, "horizon_argument", None)
    if argument is None:
        return None
    declared = inspect.signature(form).parameters.get(argument)
    registered = env.spec.kwargs if env.spec is not None else {}
    value = ({} if declared is None else {argument: declared.default}) | {**registered} | {**kwargs}
    found = value.get(argument)
    return (argument, found) if isinstance(found, int) else None
