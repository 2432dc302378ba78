"""The learner: fragments in, better weights out. PPO over windows, one engine for every mode.

Legend: N sequences, T steps, K window steps, W windows.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import fmean
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mneme.controllers import Policy, Weights
from mneme.learner.anchor import Anchor, anchor_pass
from mneme.learner.annealing import Annealing
from mneme.learner.arrival import accepted
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.diagnosis import suspects
from mneme.learner.losses import normalized
from mneme.learner.ppo import ShardResult, kl_sum, shard_gradients
from mneme.learner.returns import Returns, gae, vtrace
from mneme.learner.reward_scale import RewardScale
from mneme.learner.settings import LearnerSettings
from mneme.learner.staleness import Staleness, measure_staleness
from mneme.learner.windows import pieces
from mneme.rollout_workers.fragment import FragmentError

_MAX_SHARDS = 4
_KL_PASSES = 16  # a share of epochs / 16 of the sequences tells the KL of an update, for 2 to 3 % of its time
_ADAM_EPSILON = 1e-5


class UpdateReport(NamedTuple):
    """What one update did."""

    version: int  # of the weights after it
    steps: int  # environment steps trained on
    metrics: dict[
        str, float
    ]  # losses, KL, staleness and the like, averaged over the update's minibatches, but for the KL after it
    seconds: dict[str, float]  # where the time went, wall clock summed over an update; within shards, their mean
    refused: tuple[str, ...]  # one sentence for each fragment that was not used


class Learner:
    """Owns the trained weights and the optimizer.

    Args:
        policy: the policy to train; moved to the device that `settings.device` names.
        settings: see `LearnerSettings`.
        seed: of the minibatch order, which depends on (seed, update) alone.
        total_timesteps: the run's length in environment steps, for annealing.
        asynchronous: whether fragments may be older than the weights: anchors by default and corrects with V-trace.
    """

    def __init__(
        self,
        policy: Policy,
        settings: LearnerSettings,
        *,
        seed: int,
        total_timesteps: int,
        asynchronous: bool = False,
    ) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.policy = policy.to(self.device)
        policy.controller.check_backend(self.device)
        self.version = 0
        self.env_steps = 0
        self._seed = seed
        self._annealing = Annealing(0.0, 1.0, float(total_timesteps), 1.0)
        self._asynchronous = asynchronous
        self._anchors = settings.anchor == "always" or (settings.anchor == "auto" and asynchronous)
        self._parameters = list(self.policy.parameters())
        self._reward_scale = RewardScale(settings.gamma) if settings.normalize_rewards else None
        self._optimizer = torch.optim.Adam(self._parameters, lr=settings.learning_rate, eps=_ADAM_EPSILON, fused=True)
        self.num_threads = 1 if self.device.type != "cpu" else settings.num_threads or default_num_threads()
        # Torch's thread count is a thread's own: without this a shard's matrix products would take every core, and how
        # they are split, and so the last bits, would differ from machine to machine.
        self._pool = ThreadPoolExecutor(
            self.num_threads, thread_name_prefix="learner-thread", initializer=torch.set_num_threads, initargs=(1,)
        )

    def weights(self) -> Weights:
        """The current weights as one versioned record."""
        return Weights.from_module(self.policy, self.version)

    def update(self, batches: Iterable[pa.RecordBatch]) -> UpdateReport:
        """Train on some fragments, as they arrive: Arrow record batches.

        A malformed or non-finite fragment is refused and reported, and the others are used.

        Raises:
            FragmentError: all of them were refused.
            FloatingPointError: a gradient is not finite; the weights are those of the last finite minibatch.
        """
        clock = perf_counter()
        fragments, refused = accepted(batches, self.policy, self.version)
        if not fragments:
            raise FragmentError(refused[0] if refused else "an update was asked for without any fragment")
        batch = SequenceBatch.from_fragments(fragments, self.device)
        seconds = dict.fromkeys(("batch", "anchor", "returns", "windows", "forward", "backward", "optimizer"), 0.0)
        seconds["batch"] = perf_counter() - clock

        lags = [float(self.version - f.weights_version.min()) for f in fragments]
        metrics = {"lag": fmean(lags), "lag_max": max(lags)}
        clock = perf_counter()
        anchor = None
        # A first batch finds no statistics: it gives them, and the anchor pass sees it anew, so the first ratio is 1.
        first = self.policy.lacks_statistics()
        if first:
            self._count(batch)
        if self._anchors or first:
            anchor, staleness = self._anchor(batch)
            metrics |= staleness.metrics() if self._anchors else {}
        seconds["anchor"] = perf_counter() - clock

        clock = perf_counter()
        if self._reward_scale is not None:
            batch = replace(batch, rewards=self._reward_scale.scaled(batch))
        returns = self._returns(batch, anchor)
        if anchor is not None:
            stored = StoredCarries.of(anchor.carries, self.device)
            batch = replace(batch, log_probs=anchor.log_probs, values=anchor.values, stored=stored, past=None)
        metrics |= _value_metrics(batch, returns)
        advantages = returns.advantages
        if self.settings.normalize_advantages:
            advantages = normalized(advantages, batch.valid)
        returns = returns._replace(advantages=returns.weights * advantages)
        seconds["returns"] = perf_counter() - clock

        metrics[f"backend/{self.policy.controller.backend_on(self.device)}"] = 1.0
        metrics |= self._epochs(batch, returns, seconds)
        # Only now, so that the first ratio is 1: the epochs see observations as those who acted saw them.
        if not first:
            self._count(batch)
        self.version += 1
        self.env_steps += batch.steps
        return UpdateReport(self.version, batch.steps, metrics, seconds, tuple(refused))

    def _count(self, batch: SequenceBatch) -> None:
        """Into the statistics that normalise observations."""
        self.policy.update_statistics({name: x[:, :-1] for name, x in batch.observations.items()}, batch.valid)

    def _anchor(self, batch: SequenceBatch) -> tuple[Anchor, Staleness]:
        """Of as many sequences at once as a minibatch has, or of fewer where their carries are large."""
        chunks = min(batch.sequences, max(self.num_threads, self.settings.num_minibatches))
        plan = self.settings.plan(batch.length)
        shares = torch.arange(batch.sequences, device=self.device).tensor_split(chunks)
        rows = [group[0].rows for share in shares for group in pieces(self.policy, plan, share, batch.length)]

        def work(rows: Tensor) -> tuple[Anchor, Staleness]:
            part = batch.rows(rows)
            anchor = anchor_pass(self.policy, part)
            return anchor, measure_staleness(self.policy, part, anchor)

        parts = list(self._pool.map(work, rows))
        return Anchor.joined([anchor for anchor, _ in parts]), Staleness.joined([staleness for _, staleness in parts])

    def _returns(self, batch: SequenceBatch, anchor: Anchor | None) -> Returns:
        s = self.settings
        final_values = batch.final_values if anchor is None else anchor.final_values
        ends = (final_values, batch.terminated, batch.truncated, batch.valid)
        if anchor is None:
            return gae(batch.rewards, batch.values, *ends, gamma=s.gamma, lam=s.gae_lambda)
        if not self._asynchronous:
            return gae(batch.rewards, anchor.values, *ends, gamma=s.gamma, lam=s.gae_lambda)
        return vtrace(
            anchor.log_probs - batch.log_probs, batch.rewards, anchor.values, *ends,
            gamma=s.gamma, lam=s.gae_lambda, rho_clip=s.vtrace_rho, c_clip=s.vtrace_c,
        )  # fmt: skip

    def _epochs(self, batch: SequenceBatch, returns: Returns, seconds: dict[str, float]) -> dict[str, float]:
        s = self.settings
        self._set_learning_rate()
        order = np.random.default_rng([self._seed, self.version])
        sums: dict[str, float] = defaultdict(float)
        counted, minibatches, grad_norm, ratio_error, epochs = 0, 0, 0.0, math.nan, 0
        for epoch in range(s.num_epochs):
            epoch_kl, epoch_count = 0.0, 0
            permutation = torch.from_numpy(order.permutation(batch.sequences)).to(self.device)
            for rows in permutation.tensor_split(min(s.num_minibatches, batch.sequences)):
                count = max(1, int(batch.valid[rows].sum()))
                results = self._gradients(batch, returns, rows, count)
                clock = perf_counter()
                norm = self._apply([result.gradients for result in results])
                if not math.isfinite(norm):
                    rate, stepped = self._optimizer.param_groups[0]["lr"], self.version > 0 or minibatches > 0
                    raise FloatingPointError(
                        f"the gradient norm is {norm} at weights version {self.version}: "
                        f"{suspects(self.policy, batch, returns, rate, stepped)}"
                    )
                grad_norm += norm
                seconds["optimizer"] += perf_counter() - clock
                minibatches += 1
                for result in results:
                    for name, value in result.sums.items():
                        sums[name] += value
                    epoch_kl += result.sums["kl_minibatches"]
                    for key, spent in zip(("windows", "forward", "backward"), result.seconds, strict=True):
                        seconds[key] += spent / len(results)
                counted += count
                epoch_count += count
                if minibatches == 1:
                    ratio_error = max(result.ratio_error for result in results)
            epochs = epoch + 1
            if s.target_kl is not None and epoch_kl / epoch_count > s.target_kl:
                break
        clock = perf_counter()
        sample = torch.from_numpy(order.permutation(batch.sequences)[: -(-batch.sequences * epochs // _KL_PASSES)])
        kl = self._kl(batch, sample.to(self.device))
        seconds["forward"] += perf_counter() - clock
        metrics = {name: value / counted for name, value in sums.items()}
        return metrics | {
            "kl": kl,
            "grad_norm": grad_norm / minibatches,
            "ratio_error": ratio_error,
            "epochs": float(epochs),
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
        }

    def _kl(self, batch: SequenceBatch, rows: Tensor) -> float:
        """Between the policy that the epochs began with and the present one, a mean over these sequences' steps."""
        shards = [shard for shard in rows.chunk(self.num_threads) if len(shard)]
        sums = self._pool.map(lambda shard: kl_sum(self.policy, self.settings, batch, shard), shards)
        return sum(sums) / max(1, int(batch.valid[rows].sum()))

    def _gradients(self, batch: SequenceBatch, returns: Returns, rows: Tensor, count: int) -> list[ShardResult]:
        shards = [shard for shard in rows.chunk(self.num_threads) if len(shard)]

        def work(shard: Tensor) -> ShardResult:
            return shard_gradients(self.policy, self.settings, batch, returns, shard, count)

        return list(self._pool.map(work, shards))

    def _apply(self, shard_gradients: Sequence[Sequence[Tensor | None]]) -> float:
        """Sum the shards' gradients in their fixed order, clip, step; returns the norm before clipping. One that is not
        finite changes nothing."""
        for parameter, parts in zip(self._parameters, zip(*shard_gradients, strict=True), strict=True):
            present = [part for part in parts if part is not None]
            # A copy, as autograd may hand out one tensor for two parameters, which clipping would then scale twice; and
            # one in order, as torch's fused Adam on CPU ignores a gradient's strides.
            total = present[0].clone(memory_format=torch.contiguous_format) if present else None
            for part in present[1:]:
                total += part
            parameter.grad = total
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm))
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _set_learning_rate(self) -> None:
        if self.settings.anneal_lr:
            self._annealing = self._annealing.at(self.env_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._annealing.share

    def state(self) -> dict[str, np.ndarray]:
        """Everything the next update depends on besides the fragments: weights, Adam's moments, counters."""
        state = {f"policy.{name}": array for name, array in self.weights().arrays.items()}
        for name, parameter in self.policy.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"adam.{key}.{name}"] = value.detach().cpu().numpy().copy()
        if self._reward_scale is not None:
            state |= {f"reward_scale.{name}": array for name, array in self._reward_scale.state().items()}
        if self.settings.anneal_lr:
            state["annealing"] = np.array(self._annealing)
        return state | {"version": np.array(self.version), "env_steps": np.array(self.env_steps)}

    def expected_state(self) -> dict[str, np.ndarray]:
        """Arrays of the names, types and shapes that `state` gives after updates. Adam's three of a parameter are
        missing there before its first gradient."""
        state = self.state()
        for name, parameter in self.policy.named_parameters():
            like = np.zeros(parameter.shape, state[f"policy.{name}"].dtype)
            moments = {"step": np.zeros((), np.float32), "exp_avg": like, "exp_avg_sq": like}
            state |= {f"adam.{key}.{name}": array for key, array in moments.items()}
        return state

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue exactly where `state()` was taken.

        Raises:
            ValueError: the state is of another architecture.
        """
        arrays = {key.removeprefix("policy."): value for key, value in state.items() if key.startswith("policy.")}
        Weights(int(state["version"]), arrays).load_into(self.policy)
        for name, parameter in self.policy.named_parameters():
            moments = {
                key: torch.from_numpy(state[f"adam.{key}.{name}"].copy()).to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{key}.{name}" in state
            }
            if moments:
                self._optimizer.state[parameter] = moments
        if self._reward_scale is not None:
            self._reward_scale.set_state(
                {
                    key.removeprefix("reward_scale."): value
                    for key, value in state.items()
                    if key.startswith("reward_scale.")
                }
            )
        self.version, self.env_steps = int(state["version"]), int(state["env_steps"])
        if "annealing" in state:
            saved = Annealing(*map(float, state["annealing"]))
            self._annealing = saved.until(self._annealing.end, self.env_steps)


def default_num_threads() -> int:
    """Threads for a minibatch where the settings leave it open: one a core, four at most."""
    return min(os.cpu_count() or 1, _MAX_SHARDS)


def _value_metrics(batch: SequenceBatch, returns: Returns) -> dict[str, float]:
    values, targets = batch.values[:, : batch.length][batch.valid], returns.targets[batch.valid]
    variance = targets.var(unbiased=False)
    explained = float(1 - (targets - values).var(unbiased=False) / variance) if variance > 0 else math.nan
    return {"value_mean": float(values.mean()), "explained_variance": explained}


def resolve_device(name: str) -> torch.device:
    """Where learning runs on this machine, by `learner.device`.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"learner.device is {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"learner.device is {name!r} but this machine has no usable GPU; use auto or cpu")
    return device
