"""The learner: fragments in, better weights out. PPO over windows, one engine for every mode.

Legend: B sequences, T steps, K window steps, W windows.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from mneme.controllers import Policy, Weights
from mneme.learner.arrival import arrivals
from mneme.learner.batch import SequenceBatch
from mneme.learner.bptt import carry_gradient_ratio
from mneme.learner.device import on_host, products_in, resolve_device
from mneme.learner.diagnosis import FailedUpdate, NonfiniteGradient
from mneme.learner.epochs import run_epochs
from mneme.learner.fidelity import Fidelity, gradient_fidelity, gradient_reach
from mneme.learner.group import Group, GroupError
from mneme.learner.optimizer import Optimizer
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings
from mneme.learner.staleness import Staleness
from mneme.learner.targets import Targets
from mneme.learner.traces import LaneTraces
from mneme.learner.whole_batch import WholeBatch
from mneme.rollout_workers.state import State, under
from mneme.rollout_workers.stopwatch import Stopwatch


class UpdateReport(NamedTuple):
    """The report of one update."""

    version: int  # of the weights after it
    steps: int  # environment steps trained on
    metrics: dict[str, float]  # losses, KL and the like, averaged over the minibatches, but for the KL after them
    seconds: dict[str, float]  # where the time went, wall clock summed over an update; within shards, their mean
    refused: tuple[str, ...]  # one sentence for each fragment that was not used
    warnings: tuple[str, ...] = ()  # one sentence each


class Learner:
    """Owns the trained weights and the optimizer, alone or in a group of learners that are equal at every version.

    Args:
        policy: the policy to train; moved to the device that `settings.device` names.
        settings: see `LearnerSettings`.
        seed: of the minibatch order, which depends on (seed, update) alone.
        total_timesteps: the run's length in environment steps, for schedules.
        asynchronous: whether fragments may be older than the weights: anchors by default and corrects with V-trace.
        packed: whether sequences are episodes packed end to end. They too are older, as they have been under way.
        group: the learners that make each update together, from a part of the fragments each. What comes of it depends
            on how many they are only in the last bits.

    Raises:
        ValueError: the device does not exist or cannot run the controller, or the value head does not fit the loss.
    """

    def __init__(
        self,
        policy: Policy,
        settings: LearnerSettings,
        *,
        seed: int,
        total_timesteps: int,
        asynchronous: bool = False,
        packed: bool = False,
        group: Group | None = None,
    ) -> None:
        needed, given = settings.value_bins, policy.spec.value_bins
        if needed != given:
            raise ValueError(
                f"learner.value_loss is {settings.value_loss!r}, which needs a policy whose PolicySpec has "
                f"value_bins={needed}, and this one's has value_bins={given}; build it with the former"
            )
        self.settings = settings
        self.group = group or Group()
        self.device = resolve_device(settings.device)
        self.policy = policy.to(self.device)
        policy.controller.check_backend(self.device)
        policy.mixed_precision = settings.precision == "bf16"
        self.version = 0
        self.env_steps = 0
        self._seed = seed
        self._packed = packed
        self._traces = LaneTraces(self.policy) if settings.mode == "traces" else None
        self._optimizer = Optimizer(self.policy, settings, total_timesteps, self.group)
        self._targets = Targets(self.policy, settings, self._optimizer, asynchronous=asynchronous, packed=packed)

    def weights(self) -> Weights:
        """The current weights as one versioned record."""
        return Weights.from_module(self.policy, self.version)

    def update(self, batches: Iterable[pa.RecordBatch]) -> UpdateReport:
        """Train on some fragments, as they arrive: Arrow record batches; in a group, on what all ranks have been given.

        A malformed or non-finite fragment is refused and reported, and the others are used. A rank may have none.

        Raises:
            FragmentError: all of them were refused.
            GroupLost: another learner of the group did not answer in time.
            GroupError: another learner of the group has come to other weights.
            NonfiniteGradient: more than `max_nonfinite` gradients in a row were not finite; the weights are those of
                the last finite minibatch.
        """
        began_with, batches = self._state(Tensor.clone), tuple(batches)  # on the device, which nothing has to wait for
        watch = _watch()
        try:
            with products_in(self.settings.precision, self.device), watch("between"):
                return self._update(batches, watch)
        except NonfiniteGradient as error:
            state = {name: on_host(x) if isinstance(x, Tensor) else x for name, x in began_with.items()}
            error.update = FailedUpdate(state, batches)
            raise

    def train_on(self, batch: SequenceBatch) -> UpdateReport:
        """`update` on sequences of the present weights that are on the learner's device already. Nothing looks whether
        they fit, and a `NonfiniteGradient` has nothing to be reproduced from."""
        watch = _watch()
        with products_in(self.settings.precision, self.device), watch("between"):
            return self._train(batch, [0.0], (), watch)

    def _update(self, batches: Sequence[pa.RecordBatch], watch: Stopwatch) -> UpdateReport:
        with watch("batch"):
            batch, lags, refused = arrivals(
                batches, self.policy, self.version, self.group, self.device, packed=self._packed
            )
        return self._train(batch, lags, refused, watch)

    def _train(
        self, batch: SequenceBatch, lags: Sequence[float], refused: Sequence[str], watch: Stopwatch
    ) -> UpdateReport:
        with watch("batch"):
            whole = WholeBatch.of(self.group, batch)
        self._optimizer.anneal(self.env_steps, whole.steps)
        with watch("anchor"):
            # A first batch finds no statistics: it gives them, and the anchor pass sees it anew: the first ratio is 1.
            first = self.policy.lacks_statistics()
            if first:
                self._count(batch)
            anchors = self._targets.anchors
            anchor, staleness = self._targets.anchor(batch, whole) if anchors or first else (None, None)
        with watch("returns"):
            batch, returns = self._targets.returns(batch, whole, anchor)
        metrics = self._metrics(lags, staleness if anchors else None) | _value_metrics(whole, batch, returns)
        if self._traces is not None:
            with watch("traces"):
                batch, metrics["traces_missing"] = self._traces.through(
                    batch, self._optimizer.map, self._optimizer.num_threads
                )
        with watch("fidelity"):
            metrics |= self._gradient_metrics(batch, returns, whole)
        metrics["padding"] = 1 - whole.steps / whole.valid.numel()
        metrics |= run_epochs(
            self._optimizer, self.policy, self.settings, batch, returns, whole,
            seed=self._seed, version=self.version, watch=watch,
        )  # fmt: skip
        # Only now, so that the first ratio is 1: the epochs see observations as those who acted saw them.
        if not first:
            self._count(batch)
        self.version += 1
        self.env_steps += whole.steps
        with watch("synchronize"):
            self._check_equal()
        warnings = self._optimizer.warnings()
        return UpdateReport(self.version, whole.steps, metrics, watch.seconds, tuple(refused), warnings)

    def _check_equal(self) -> None:
        """Refuse to go on with weights that are not the same on every rank."""
        if self.group.size == 1:
            return
        first, *others = self.group.gather(self.weights().digest())
        for rank, digest in enumerate(others, 1):
            if digest != first:
                raise GroupError(
                    f"the weights of learner replica {rank} differ from those of replica 0 at version {self.version} "
                    f"(SHA-256 {digest[:8]}, not {first[:8]}); let all replicas run on machines of one kind with the "
                    f"same packages, or set learner.replicas=1"
                )

    def _metrics(self, lags: Sequence[float], staleness: Staleness | None) -> dict[str, float]:
        """Metrics of the fragments, and of what they are worked on with."""
        metrics = {"lag": fmean(lags), "lag_max": max(lags)} | (staleness.metrics() if staleness else {})
        metrics |= {f"lag/{lag:g}": lags.count(lag) / len(lags) for lag in sorted(set(lags))}
        return metrics | {f"backend/{self.policy.controller.backend_on(self.device)}": 1.0}

    def _fidelity(self, batch: SequenceBatch, returns: Returns, whole: WholeBatch) -> Fidelity:
        own = Returns(*map(whole.part, returns))
        return gradient_fidelity(self.policy, self._optimizer.settings, batch, own, whole.steps, self.group)

    def _gradient_metrics(self, batch: SequenceBatch, returns: Returns, whole: WholeBatch) -> dict[str, float]:
        """What the mode does to the gradient, as far as that is asked for; an adaptive K takes note of it."""
        settings, bptt, every = self._optimizer.settings, self._optimizer.schedules.bptt, self.settings.fidelity_every
        metrics = {"bptt_length": float(settings.plan(batch.length).cut_every)}
        if bptt.adapts:
            ratio = carry_gradient_ratio(self.policy, settings, batch, returns, whole)
            metrics["carry_gradient"] = math.nan if ratio is None else ratio
            bptt.look(ratio)
        if every and self.version % every == 0:
            metrics |= self._fidelity(batch, returns, whole).metrics()
        return metrics

    @property
    def present_settings(self) -> LearnerSettings:
        """The settings as schedules have made them, mode and K included, but for the learning rate."""
        return self._optimizer.settings

    def next_mode(self) -> None:
        """Enter the next mode of the schedule, if there is one."""
        self._optimizer.schedules.bptt.next_mode()

    def _count(self, batch: SequenceBatch) -> None:
        """Into the statistics that normalise observations."""
        observations = {name: x[:, :-1] for name, x in batch.observations.items()}
        self.policy.update_statistics(observations, batch.valid, self.group.stack)

    def diagnose(self, batches: Iterable[pa.RecordBatch]) -> tuple[Fidelity, Tensor]:
        """The gradient's fidelity and its reach, [T], on some fragments at the present weights; nothing is trained.

        Raises:
            FragmentError: all fragments were refused.
        """
        batch = arrivals(batches, self.policy, self.version, self.group, self.device).batch
        whole = WholeBatch.of(self.group, batch)
        before = self._targets.state()
        batch, returns = self._targets.returns(batch, whole, None)
        self._targets.set_state(before)
        with products_in(self.settings.precision, self.device):
            reach = gradient_reach(self.policy, self._optimizer.settings, batch, returns)
            return self._fidelity(batch, returns, whole), reach

    def state(self) -> State:
        """Everything the next update depends on besides the fragments: weights, Adam's moments, counters."""
        return self._state(on_host)

    def _state(self, copy: Callable[[Tensor], Any]) -> dict[str, Any]:
        return self._own_state(copy) | self._optimizer.state(copy)

    def expected_state(self) -> State:
        """Arrays of the names, types and shapes that `state` gives after updates. Adam's are missing there
        before the first step."""
        return self._own_state(on_host) | self._optimizer.expected_state()

    def _own_state(self, copy: Callable[[Tensor], Any]) -> dict[str, Any]:
        state = {f"policy.{name}": copy(value.detach()) for name, value in self.policy.state_dict().items()}
        state |= self._targets.state()
        if self._traces is not None:
            state |= {f"traces.{name}": value for name, value in self._traces.state(copy).items()}
        return state | {"version": np.array(self.version), "env_steps": np.array(self.env_steps)}

    def set_state(self, state: State) -> None:
        """Continue exactly where `state()` was taken.

        Raises:
            ValueError: the state is of another architecture.
        """
        weights_in(state).load_into(self.policy)
        self._targets.set_state(state)
        if self._traces is not None:
            self._traces.set_state(under("traces.", state))
        self.version, self.env_steps = int(state["version"]), int(state["env_steps"])
        self._optimizer.set_state(state, self.env_steps)


def _watch() -> Stopwatch:
    learning = "windows", "forward", "backward", "synchronize", "optimizer"
    return Stopwatch("between", "batch", "anchor", "returns", "traces", "fidelity", *learning)


def weights_in(state: State) -> Weights:
    """The weights that a learner's state holds."""
    return Weights(int(state["version"]), under("policy.", state))


def _value_metrics(whole: WholeBatch, batch: SequenceBatch, returns: Returns) -> dict[str, float]:
    values, targets = whole.gathered(batch.values[:, : batch.length])[whole.valid], returns.targets[whole.valid]
    variance = targets.var(unbiased=False)
    explained = float(1 - (targets - values).var(unbiased=False) / variance) if variance > 0 else math.nan
    return {"value_mean": float(values.mean()), "explained_variance": explained}
