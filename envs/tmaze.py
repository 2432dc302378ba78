"""T-maze: see at the start which way to turn, walk down a corridor, turn at its end.

Legend: C cells of the maze, A actions, B environments, T steps of an episode.
"""

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mneme.envs.facts import TaskFacts
from mneme.envs.lane_random import lane_integers
from mneme.envs.memory_env import MemoryVectorEnv, Observation, SingleEnv, Transition, one_of, whole_number, within
from mneme.envs.resumable import State


class TMaze(MemoryVectorEnv):
    """The T-maze of Ni et al. 2023, passive or active, or a corridor without walking.

        oracle                      junction
          o --- start ------------------+ <- goals: one step up or down from the junction

    Passive (the default): the agent starts at the oracle, `length` steps left of the junction. Active: it starts
    one step right of the oracle, `length` steps left of the junction, and has to fetch the hint. A move into a
    wall does nothing. The episode terminates after length + 1 steps (active: length + 3), which is just enough
    for the walk, and pays 1 if the agent then stands on the goal. Dense reward: each earlier step that ends
    behind schedule costs 1 / length, that is, when after t steps the agent stands less than t steps (active:
    t - 1) right of the oracle. Who reaches the goal was never behind.

    Observation, float32 [2], as in the paper's code: (0, hint) when the oracle is first visited, where the hint
    is 1 for up and -1 for down; (1, y) at the junction (y = 0) and on the goals (y = ±1); zeros elsewhere. So
    neither the time nor the place in the corridor is shown. Action: Discrete(4): right, up, left, down.

    Without walk, every step of the passive corridor leads on by itself; Discrete(2): up, down, which count only
    at the junction. It is delayed cue with two cues, and nothing can be lost before the junction.

    With `shortest_length`, each episode draws its own length, all equally likely, and everything above is said of
    that: who has walked one length only may turn by the time, and not by the sight of the junction.

    Facts. The best return is 1. A policy without memory gets 1/2 at most, by walking straight and always turning
    up: for each outcome of its dice at most one of the two goals is reached, as both walks would have to leave
    the oracle at the same time, and see and do the same from then on. Chance is in `_chance_return`.

    Sources: Bakker, "Reinforcement learning with long short-term memory" (NeurIPS 2001); Ni, Ma, Eysenbach and
    Bacon, "When do transformers shine in RL? Decoupling memory from credit assignment" (NeurIPS 2023).

    Args:
        num_envs: lanes.
        length: steps from start to junction, at least 1; the most of them with `shortest_length`.
        shortest_length: fewest; each episode draws its own number. None: always `length`.
        active: whether the hint has to be fetched.
        reward: "dense", with the cost of falling behind, or "sparse", the goal alone.
        walk: whether the agent walks itself.
    """

    horizon_argument = "length"

    def __init__(
        self,
        num_envs: int,
        length: int = 10,
        shortest_length: int | None = None,
        active: bool = False,
        reward: str = "dense",
        walk: bool = True,
    ) -> None:
        self._length = whole_number("length", length, 1)
        self._shortest = length if shortest_length is None else whole_number("shortest_length", shortest_length, 1)
        if self._shortest > length:
            raise ValueError(f"shortest_length is {shortest_length}; it must be at most length, {length}")
        self._start = int(one_of("active", active, (False, True)))
        self._dense = one_of("reward", reward, ("dense", "sparse")) == "dense"
        self._walk = bool(one_of("walk", walk, (False, True)))
        if active and not self._walk:
            raise ValueError("walk is False, but an active agent walks to the oracle; set walk=True or active=False")
        self._junction = self._start + length
        self._next_CA = _maze(self._junction) if self._walk else _conveyor(self._junction)
        self._view_CX = np.zeros((self._junction + 3, 2), dtype=np.float32)
        self._view_CX[self._junction :] = (1, 0), (1, 1), (1, -1)
        super().__init__(
            num_envs,
            gym.spaces.Box(np.array([0, -1], np.float32), np.ones(2, np.float32), dtype=np.float32),
            gym.spaces.Discrete(self._next_CA.shape[1]),
            TaskFacts(
                memory_horizon=self._junction,
                episode_length=length + 1 + 2 * self._start if self._shortest == length else None,
                optimal_return=1.0,
                memoryless_return=0.5,
                chance_return=self._chance_return() if walk else 0.5,
                success_return=1.0,
            ),
        )
        self._goal_B = np.zeros(num_envs, dtype=np.int64)
        self._cell_B = np.zeros(num_envs, dtype=np.int64)
        self._oracle_B = np.zeros(num_envs, dtype=np.int64)  # its cell; there is none left of it
        self._hint_step_B = np.zeros(num_envs, dtype=np.int64)  # when the oracle was first visited, or -1

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        key_B = self._episode_key_B[lanes_B]
        self._goal_B[lanes_B] = self._junction + 1 + lane_integers(key_B, 0, 2, 1)[:, 0]
        if self._shortest < self._length:
            self._oracle_B[lanes_B] = lane_integers(key_B, 1, self._length - self._shortest + 1, 1)[:, 0]
        self._cell_B[lanes_B] = self._oracle_B[lanes_B] + self._start
        self._hint_step_B[lanes_B] = -self._start

    def _memory(self) -> State:
        return {"cell": self._cell_B, "hint_step": self._hint_step_B}

    def set_state(self, state: State) -> None:
        """See `MemoryVectorEnv.set_state`."""
        super().set_state(state)
        within("cell", self._cell_B, 0, len(self._next_CA) - 1)
        within("hint_step", self._hint_step_B, -1, self._junction + 1 + self._start)
        moved_B = np.minimum(self._cell_B, self._junction + 1) - self._oracle_B - self._start
        unreached_B = (np.abs(moved_B) > self._step_B) if self._walk else (moved_B != self._step_B)
        if unreached_B.any():
            cell, step = self._cell_B[unreached_B][0], self._step_B[unreached_B][0]
            raise ValueError(f"'cell' in a state is {cell}, where step {step} of an episode cannot be")

    def _transition(self, action_B: np.ndarray) -> Transition:
        self._cell_B[:] = np.maximum(self._next_CA[self._cell_B, action_B], self._oracle_B)
        step_B, length_B = self._step_B + 1, self._length - self._oracle_B
        first_visit_B = (self._cell_B == self._oracle_B) & (self._hint_step_B < 0)
        self._hint_step_B[first_visit_B] = step_B[first_visit_B]
        last_B = step_B == length_B + 1 + 2 * self._start
        reward_B = (last_B & (self._cell_B == self._goal_B)).astype(np.float64)
        if self._dense:
            behind_B = self._cell_B - self._oracle_B < step_B - self._start
            reward_B -= (behind_B & ~last_B) / length_B
        return reward_B, last_B, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        observation: Observation = self._view_CX[self._cell_B]
        hint_B = self._hint_step_B == self._step_B
        observation[hint_B, 1] = np.where(self._goal_B[hint_B] == self._junction + 1, 1.0, -1.0)
        return observation

    def _chance_return(self) -> float:
        lengths = range(self._shortest, self._length + 1)
        return sum(_chance_return(length, bool(self._start), self._dense) for length in lengths) / len(lengths)


class TMazeEnv(SingleEnv):
    """The T-maze as a single environment; takes the keyword arguments of `TMaze`."""

    vector_class = TMaze


def _maze(junction: int) -> NDArray[np.int64]:
    """The cell to which each action leads from each cell, [C, A].

    Cells 0 to `junction` are the corridor, from the oracle on; the next two are the goals, up and down.
    """
    up, down = junction + 1, junction + 2
    cell_C = np.arange(junction + 3)
    next_CA = np.repeat(cell_C[:, None], 4, axis=1)
    next_CA[:junction, 0] += 1
    next_CA[1:up, 2] -= 1
    next_CA[junction, [1, 3]] = up, down
    next_CA[down, 1] = next_CA[up, 3] = junction
    return next_CA


def _conveyor(junction: int) -> NDArray[np.int64]:
    """As `_maze`, but without walking: every action moves one cell on, and only the choice at the junction matters."""
    next_CA = np.repeat(np.arange(1, junction + 4)[:, None], 2, axis=1)
    next_CA[junction] = junction + 1, junction + 2
    return next_CA


def _chance_return(length: int, active: bool, dense: bool) -> float:
    """Expected return of a random walk, exactly, by counting walks; all 4 ** t walks of t steps are equally likely.

    Passive: after t steps one walk is on schedule, always right, and one walk ends on the goal.
    Active: two places may be lost; a step up or down loses one, a step left two. So there is 1 walk that loses
    none, 2 t that lose one, and 2 t (t - 1) + t that lose two. Walls change this by one walk at t = length + 2: a
    step left on either goal loses no more, but one left from the junction after one right into its wall does. Of
    the walks there, 2 length ** 2 + 5 length + 4 stand at the junction, one step from the goal, and
    2 length + 4 on it, where 3 of 4 steps stay.
    """
    t = np.arange(1, length + 1 + 2 * active)
    scheduled = 2 * t**2 + t + 1 if active else np.ones_like(t)
    scheduled[-1] += active
    arriving = 2 * length**2 + 5 * length + 4 + 3 * (2 * length + 4) if active else 1
    cost = (1.0 - scheduled * 0.25**t).sum() / length if dense else 0.0
    return float(arriving * 0.25 ** (t[-1] + 1) - cost)
