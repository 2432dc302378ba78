"""A vector environment that lives in this process beside others."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

from mneme.envs.global_random import Entropy, GlobalStreams
from mneme.envs.guard import close_quietly

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]


class Enclosed(gym.vector.VectorWrapper):
    """Has streams of its own in the place of the process's generators, and costs nothing by failing to close.

    Its lanes take turns at these streams, in their order. So what they draw follows from the seed and from how lanes
    are shared out over workers, and neither disturbs what else runs in this process nor is disturbed by it.

    Args:
        make: makes the environment.
        name: of the environment, for what is said.
        seed: of what is drawn before the first seeded reset.
    """

    def __init__(self, make: Callable[[], VectorEnv], name: str, seed: Entropy) -> None:
        self._streams, self._name = GlobalStreams(seed), name
        with self._streams:
            env = make()
        super().__init__(env)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every lane."""
        if seed is not None:
            seeds = [seed] if isinstance(seed, int) else seed
            self._streams.seed(tuple(lane_seed for lane_seed in seeds if lane_seed is not None))
        with self._streams:
            return self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every lane."""
        with self._streams:
            return self.env.step(actions)

    def close(self, **kwargs: Any) -> None:
        """Let the environments go."""
        close_quietly(self.env, self._name)
