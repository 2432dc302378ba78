"""The gradient step: a minibatch shared out over threads, its gradients summed, clipped and applied.

Legend: B sequences.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam  # torch.optim.Adam would import a compiler, for a second and a half

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.device import on_host
from mneme.learner.flat import FlatParameters
from mneme.learner.gradients import kl_sum
from mneme.learner.group import Group
from mneme.learner.returns import Returns
from mneme.learner.schedules import Schedules
from mneme.learner.settings import LearnerSettings
from mneme.learner.shards import Minibatch, Shards
from mneme.rollout_workers.state import State
from mneme.rollout_workers.stopwatch import Stopwatch

_ADAM_EPSILON = 1e-5
_MAX_THREADS = 4
_MOMENTS = _STEP, _MEAN, _SQUARE = "step", "exp_avg", "exp_avg_sq"  # what Adam keeps of a parameter
_NONFINITE = "nonfinite_in_a_row"

T = TypeVar("T")


class Step(NamedTuple):
    """The results of one minibatch; sums and error are of the part that this learner holds."""

    sums: dict[str, float]  # of losses and signals over the valid steps
    ratio_error: float  # max |ratio - 1|
    grad_norm: float  # before clipping; where it is not finite, nothing was changed


class Optimizer:
    """Adam over a policy's parameters, and the threads that compute their gradients.

    Args:
        policy: what is trained, on its device.
        settings: see `LearnerSettings`.
        total_timesteps: environment steps at which what falls by a schedule is zero.
        group: the learners that take each step together.
    """

    def __init__(self, policy: Policy, settings: LearnerSettings, total_timesteps: int, group: Group) -> None:
        self._policy, self._max_grad_norm, self._group = policy, settings.max_grad_norm, group
        self.schedules = Schedules(settings, total_timesteps)
        self._names = [name for name, _ in policy.named_parameters()]
        held = {id(parameter) for parameter in policy.controller.parameters()}
        core = {name: parameter for name, parameter in policy.named_parameters() if id(parameter) in held}
        rest = {name: parameter for name, parameter in policy.named_parameters() if id(parameter) not in held}
        self._flat = FlatParameters([rest, core])
        self._scales = (1.0, settings.core_lr_scale)  # of the vectors' learning rates
        self.learning_rate = settings.learning_rate
        """That of the next step, of all but the controller."""
        self._moments: list[dict[str, Tensor]] = []  # of each vector, once there has been a step
        self.nonfinite_in_a_row = 0  # gradients, up to the newest
        on_cpu = self._flat.gradient.device.type == "cpu"
        self.num_threads = settings.num_threads or default_num_threads() if on_cpu else 1
        self._shards = Shards(policy, self._flat, self.num_threads)

    @property
    def settings(self) -> LearnerSettings:
        """The settings as they are in this update, but for the learning rate."""
        return self.schedules.settings

    def anneal(self, env_steps: int, steps: int) -> None:
        """Set what is scheduled for an update of `steps` environment steps after `env_steps` of them."""
        self._shards.new_update()
        self.schedules.advance(env_steps, env_steps + steps)
        self.learning_rate = self.schedules.learning_rate

    def map(self, work: Callable[[Tensor], T], shares: Sequence[Tensor]) -> list[T]:
        """`work` on each share, side by side; results in the order of the shares."""
        return self._shards.map(work, shares)

    def warnings(self) -> tuple[str, ...]:
        """What there is to be told since the last time; one sentence each."""
        told, self._shards.warnings = tuple(self._shards.warnings), []
        return told

    def step(self, batch: SequenceBatch, returns: Returns, rows: Tensor, count: int, watch: Stopwatch) -> Step:
        """Descend the loss of the sequences `rows` [n], which may be none, and of the group's others; they have `count`
        valid steps in all."""
        shared = self._shards.gradients(Minibatch(self.settings, batch, returns, self._shares(rows), count))
        results = [result for result, _ in shared]
        with watch("optimizer"):
            self._sum_up([gradient for _, gradient in shared])
        with watch("synchronize"):
            gradient = self._flat.gradient
            gradient.copy_(self._group.sum(gradient))
        with watch("optimizer"):
            norm = self._apply()
        sums: dict[str, float] = {}
        for result in results:
            watch.add(result.seconds, 1 / len(results))
            sums = {name: sums.get(name, 0.0) + value for name, value in result.sums.items()}
        return Step(sums, max((result.ratio_error for result in results), default=0.0), norm)

    def kl(self, batch: SequenceBatch, rows: Tensor) -> float:
        """Between the policy of the batch's log-probabilities and the present one, summed over these sequences."""
        return sum(self.map(lambda share: kl_sum(self._policy, self.settings, batch, share), self._shares(rows)))

    def _shares(self, rows: Tensor) -> list[Tensor]:
        return [share for share in rows.chunk(self.num_threads) if len(share)]

    def _sum_up(self, gradients: Sequence[Tensor]) -> None:
        """Fill in the shards' gradients, summed in their fixed order."""
        total = self._flat.gradient
        total.zero_()
        for gradient in gradients:
            total += gradient

    def _apply(self) -> float:
        """Clip and step; returns the norm before clipping. One that is not finite changes nothing."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._flat.vectors, self._max_grad_norm))
        finite = math.isfinite(norm)
        self.nonfinite_in_a_row = 0 if finite else self.nonfinite_in_a_row + 1
        if finite:
            self._descend()
        return norm

    @torch.no_grad()
    def _descend(self) -> None:
        """Adam's step (Kingma and Ba 2015, algorithm 1)."""
        vectors = self._flat.vectors
        gradients = self._flat.gradient.split([len(vector) for vector in vectors])
        self._moments = self._moments or [_no_moments(gradient) for gradient in gradients]
        for vector, gradient, moments, scale in zip(vectors, gradients, self._moments, self._scales, strict=True):
            step, mean, square = ([moments[key]] for key in _MOMENTS)
            adam(
                [vector], [gradient], mean, square, [], step, lr=self.learning_rate * scale, eps=_ADAM_EPSILON,
                beta1=0.9, beta2=0.999, weight_decay=0.0, amsgrad=False, maximize=False, fused=True,
            )  # fmt: skip

    def state(self, copy: Callable[[Tensor], Any] = on_host) -> dict[str, Any]:
        """Adam's moments, by parameter, where the schedules are, and how many steps were skipped last."""
        state: dict[str, Any] = self.schedules.state() | {_NONFINITE: np.array(self.nonfinite_in_a_row)}
        if self._moments:
            for moments, names in zip(self._moments, self._flat.names, strict=True):
                state |= {f"adam.{_STEP}.{name}": copy(moments[_STEP]) for name in names}
            for key in (_MEAN, _SQUARE):
                parts = self._flat.named(torch.cat([moments[key] for moments in self._moments]))
                state |= {f"adam.{key}.{name}": copy(part) for name, part in parts.items()}
        return state

    def expected_state(self) -> State:
        """Arrays of the names, types and shapes that `state` gives after the first step."""
        state = self.state()
        for name, parameter in self._policy.named_parameters():
            like = np.zeros(parameter.shape, parameter.detach().cpu().numpy().dtype)
            moments = dict(zip(_MOMENTS, (np.zeros((), np.float32), like, like), strict=True))
            state |= {f"adam.{key}.{name}": array for key, array in moments.items()}
        return state

    def set_state(self, state: State, env_steps: int) -> None:
        """Continue exactly where `state()` was taken, after so many environment steps; moments that it lacks are
        zero."""
        self._moments = []
        mean, square = (self._flat.joined(self._held(state, key)) for key in (_MEAN, _SQUARE))
        sizes = [len(vector) for vector in self._flat.vectors]
        if steps := list(self._held(state, _STEP).values()):
            for parts in zip(mean.split(sizes), square.split(sizes), strict=True):
                moments = (torch.stack(steps).max(), *(part.clone() for part in parts))
                self._moments.append(dict(zip(_MOMENTS, moments, strict=True)))
        self.nonfinite_in_a_row = int(state[_NONFINITE])
        self.schedules.set_state(state, env_steps)

    def _held(self, state: State, key: str) -> dict[str, Tensor]:
        """One of Adam's three, by parameter, as far as a state has it."""
        found = {name: state.get(f"adam.{key}.{name}") for name in self._names}
        device = self._flat.gradient.device
        return {name: torch.tensor(array, device=device) for name, array in found.items() if array is not None}


def _no_moments(gradient: Tensor) -> dict[str, Tensor]:
    step = gradient.new_zeros((), dtype=torch.float32)
    return dict(zip(_MOMENTS, (step, torch.zeros_like(gradient), torch.zeros_like(gradient)), strict=True))


def default_num_threads(sharing: int = 1) -> int:
    """Threads for a minibatch where the settings leave it open: one a core, four at most, where so many learners share
    the cores."""
    return max(1, min((os.cpu_count() or 1) // sharing, _MAX_THREADS))
