"""The gradient step: a minibatch shared out over threads, its gradients summed, clipped and applied.

Legend: B sequences.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import kl_sum, shard_gradients
from mneme.learner.group import Group
from mneme.learner.returns import Returns
from mneme.learner.schedules import Schedules
from mneme.learner.settings import LearnerSettings
from mneme.rollout_workers.stopwatch import Stopwatch

_ADAM_EPSILON = 1e-5
_MAX_THREADS = 4
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of a parameter
_NONFINITE = "nonfinite_in_a_row"

State = dict[str, np.ndarray]
T = TypeVar("T")


def on_host(x: Tensor) -> np.ndarray:
    """A copy in the host's memory, for which the device has to be waited for."""
    return x.cpu().numpy().copy()


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
        self._parameters = list(policy.parameters())
        core = list(policy.controller.parameters())
        held = {id(parameter) for parameter in core}
        rest = [parameter for parameter in self._parameters if id(parameter) not in held]
        groups = [{"params": rest, "scale": 1.0}, {"params": core, "scale": settings.core_lr_scale}]
        self._adam = torch.optim.Adam(groups, lr=settings.learning_rate, eps=_ADAM_EPSILON, fused=True)
        self.nonfinite_in_a_row = 0  # gradients, up to the newest
        on_cpu = self._parameters[0].device.type == "cpu"
        self.num_threads = settings.num_threads or default_num_threads() if on_cpu else 1
        # Torch's thread count is a thread's own: without this a shard's matrix products would take every core, and how
        # they are split, and so the last bits, would differ from machine to machine.
        self._pool = ThreadPoolExecutor(
            self.num_threads, thread_name_prefix="learner-thread", initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, of all but the controller."""
        return float(self._adam.param_groups[0]["lr"])

    @property
    def settings(self) -> LearnerSettings:
        """The settings as they are in this update, but for the learning rate."""
        return self.schedules.settings

    def anneal(self, env_steps: int, steps: int) -> None:
        """Set what is scheduled for an update of `steps` environment steps after `env_steps` of them."""
        self.schedules.advance(env_steps, env_steps + steps)
        for group in self._adam.param_groups:
            group["lr"] = self.schedules.learning_rate * group["scale"]

    def map(self, work: Callable[[Tensor], T], shares: Sequence[Tensor]) -> list[T]:
        """`work` on each share, side by side; results in the order of the shares."""
        return list(self._pool.map(work, shares))

    def step(self, batch: SequenceBatch, returns: Returns, rows: Tensor, count: int, watch: Stopwatch) -> Step:
        """Descend the loss of the sequences `rows` [n], which may be none, and of the group's others; they have `count`
        valid steps in all."""
        results = self.map(
            lambda share: shard_gradients(self._policy, self.settings, batch, returns, share, count),
            self._shares(rows),
        )
        with watch("optimizer"):
            gradients = self._summed([result.gradients for result in results])
        with watch("synchronize"):
            gradients = self._group.sum_gradients(gradients, self._parameters)
        with watch("optimizer"):
            norm = self._apply(gradients)
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

    def _summed(self, shard_gradients: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
        """The shards' gradients, summed in their fixed order."""
        totals: list[Tensor | None] = []
        for index in range(len(self._parameters)):
            present = [part for gradients in shard_gradients if (part := gradients[index]) is not None]
            if not present:
                totals.append(None)
                continue
            # A copy, as autograd may hand out one tensor for two parameters, which clipping would then scale twice; and
            # one in order, as torch's fused Adam on CPU ignores a gradient's strides.
            total = present[0].clone(memory_format=torch.contiguous_format)
            for part in present[1:]:
                total += part
            totals.append(total)
        return totals

    def _apply(self, gradients: Sequence[Tensor | None]) -> float:
        """Clip and step; returns the norm before clipping. One that is not finite changes nothing."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        finite = math.isfinite(norm)
        self.nonfinite_in_a_row = 0 if finite else self.nonfinite_in_a_row + 1
        if finite:
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return norm

    def state(self, copy: Callable[[Tensor], Any] = on_host) -> dict[str, Any]:
        """Adam's moments, by parameter, where the schedules are, and how many steps were skipped last."""
        state: dict[str, Any] = self.schedules.state() | {_NONFINITE: np.array(self.nonfinite_in_a_row)}
        for name, parameter in self._policy.named_parameters():
            for key, value in self._adam.state.get(parameter, {}).items():
                state[f"adam.{key}.{name}"] = copy(value.detach())
        return state

    def expected_state(self) -> State:
        """Arrays of the names, types and shapes that `state` gives once every parameter has had a gradient."""
        state = self.state()
        for name, parameter in self._policy.named_parameters():
            like = np.zeros(parameter.shape, parameter.detach().cpu().numpy().dtype)
            moments = dict(zip(_MOMENTS, (np.zeros((), np.float32), like, like), strict=True))
            state |= {f"adam.{key}.{name}": array for key, array in moments.items()}
        return state

    def set_state(self, state: State, env_steps: int) -> None:
        """Continue exactly where `state()` was taken, after so many environment steps."""
        for name, parameter in self._policy.named_parameters():
            moments = {
                key: torch.from_numpy(state[f"adam.{key}.{name}"].copy()).to(parameter.device)
                for key in _MOMENTS
                if f"adam.{key}.{name}" in state
            }
            if moments:
                self._adam.state[parameter] = moments
        self.nonfinite_in_a_row = int(state[_NONFINITE])
        self.schedules.set_state(state, env_steps)


def default_num_threads(sharing: int = 1) -> int:
    """Threads for a minibatch where the settings leave it open: one a core, four at most, where so many learners share
    the cores."""
    return max(1, min((os.cpu_count() or 1) // sharing, _MAX_THREADS))
