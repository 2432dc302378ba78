"""The recent past of every lane, kept across fragments; from it the learner recomputes the carry at a sequence's start.

Legend: B environments, T steps of a fragment, P steps held, Q carries held.
"""

import numpy as np

from mneme.controllers import Carry
from mneme.rollout_workers.fragment import Fragment, Past
from mneme.rollout_workers.spaces import Parts
from mneme.rollout_workers.state import State


class History:
    """The last P steps of every lane, and the carries from which they can be replayed.

    The fragment that begins at step k T is replayed from step k T - P, so of each fragment the carry before one step is
    kept, until the fragment that starts from it has begun: Q = ceil(P / T) carries are held. Before a lane's first step
    there are resets, and its own first observation.

    Args:
        steps: P, at least 1.
        length: T.
        observation: the first of every lane.
        carry: what the lanes start from.
    """

    def __init__(self, steps: int, length: int, observation: Parts, carry: Carry) -> None:
        self._steps, Q = steps, -(-steps // length)
        self.due = Q * length - steps
        """The step of every fragment whose incoming carry is to be kept."""
        self._resets = np.ones((len(next(iter(observation.values()))), steps), np.bool_)
        self._observations = {name: np.repeat(part[:, None], steps, 1) for name, part in observation.items()}
        self._carries = {name: np.repeat(c.numpy()[:, None], Q, 1) for name, c in carry.items()}

    def past(self) -> Past:
        """The past that goes with the next fragment. No array of a history is written to, so it may be shared."""
        return Past(self._observations, self._resets, {name: c[:, 0] for name, c in self._carries.items()})

    def keep(self, carry: Carry) -> None:
        """Take the carry that enters step `due`; the one that a fragment has begun with makes room."""
        self._carries = {
            name: np.concatenate([held[:, 1:], carry[name].numpy()[:, None]], 1) for name, held in self._carries.items()
        }

    def extend(self, fragment: Fragment) -> None:
        """Move on by the steps of a fragment."""
        T = fragment.length
        self._observations = {
            name: _last(self._steps, held, fragment.observations[name][:, :T])
            for name, held in self._observations.items()
        }
        self._resets = _last(self._steps, self._resets, fragment.resets[:, :T])

    def state(self) -> State:
        """The state for `set_state`: arrays [B, P, ...], and the carries [B, Q, ...]."""
        observations = {f"past.observation.{name}": part for name, part in self._observations.items()}
        carries = {f"past.carry.{name}": c for name, c in self._carries.items()}
        return {"past.resets": self._resets} | observations | carries

    def set_state(self, state: State) -> None:
        """Continue where `state()` was taken."""
        self._resets = state["past.resets"].copy()
        self._observations = {name: state[f"past.observation.{name}"].copy() for name in self._observations}
        self._carries = {name: state[f"past.carry.{name}"].copy() for name in self._carries}


def _last(steps: int, held: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The last `steps` of both, [B, steps, ...], in memory of their own."""
    count = new.shape[1]
    return new[:, count - steps :].copy() if count >= steps else np.concatenate([held[:, count:], new], 1)
