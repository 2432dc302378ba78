"""PPO's epochs: one batch, minibatch by minibatch, in an order of its own each time.

A minibatch whose gradient is not finite is skipped, as in mixed-precision training with a loss scale (Micikevicius et
al. 2018, section 3.2): it changes neither weights nor Adam's state, and counts in no mean.
"""

import math
from collections import defaultdict

import numpy as np
import torch

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.diagnosis import NonfiniteGradient, suspects
from mneme.learner.objective import RATIO, RATIO_SQUARED
from mneme.learner.optimizer import Optimizer
from mneme.learner.returns import Returns, normalized_over
from mneme.learner.settings import LearnerSettings
from mneme.learner.whole_batch import WholeBatch
from mneme.rollout_workers.stopwatch import Stopwatch

_KL_PASSES = 16  # a share of epochs / 16 of the sequences tells the KL of an update, for 2 to 3 % of its time


def run_epochs(
    optimizer: Optimizer,
    policy: Policy,
    s: LearnerSettings,
    batch: SequenceBatch,
    returns: Returns,
    whole: WholeBatch,
    *,
    seed: int,
    version: int,
    watch: Stopwatch,
) -> dict[str, float]:
    """Train on a batch, this rank's part of the group's; returns metrics, means over the minibatches' steps of all.

    Args:
        optimizer: of the policy's parameters.
        policy: what is trained.
        s: the learner's settings.
        batch: with the log-probabilities and values that count as old.
        returns: advantages and value targets of the whole batch; not normalised and weighted yet if that is done by
            minibatch.
        whole: the group's batch.
        seed: of the run; the order of the minibatches depends on (seed, version) alone.
        version: of the weights before.
        watch: counts where the time goes.

    Raises:
        NonfiniteGradient: more than `max_nonfinite` gradients in a row were not finite; the weights are those of the
            last finite minibatch.
    """
    order = np.random.default_rng([seed, version])
    sums: dict[str, float] = defaultdict(float)
    steps_B = whole.valid.sum(1)
    counted, minibatches, skipped, grad_norm, ratio_error, epochs = 0, 0, 0, 0.0, math.nan, 0
    for epoch in range(s.num_epochs):
        epoch_kl, epoch_count = 0.0, 0
        permutation = torch.from_numpy(order.permutation(whole.sequences))
        for rows in permutation.tensor_split(min(s.num_minibatches, whole.sequences)):
            with watch("returns"):
                by_minibatch = s.normalize_advantages == "minibatch"
                of_rows = normalized_over(returns, whole.valid, rows) if by_minibatch else returns
                own = Returns(*map(whole.part, of_rows))
                count = max(1, int(steps_B[rows].sum()))
            step = optimizer.step(batch, own, whole.here(rows), count, watch)
            if not minibatches and not skipped:
                ratio_error = step.ratio_error
            if not math.isfinite(step.grad_norm):
                if optimizer.nonfinite_in_a_row > s.max_nonfinite:
                    stepped = version > 0 or minibatches > 0
                    why = suspects(policy, batch, returns, optimizer.learning_rate, stepped, whole.group)
                    raise NonfiniteGradient(
                        f"the gradient norm is {step.grad_norm} at weights version {version}: {why}"
                    )
                skipped += 1
                continue
            minibatches += 1
            grad_norm += step.grad_norm
            for name, value in step.sums.items():
                sums[name] += value
            epoch_kl += step.sums.get("kl_minibatches", 0.0)
            counted += count
            epoch_count += count
        epochs = epoch + 1
        if s.target_kl is not None and epoch_count and sum(whole.group.gather(epoch_kl)) / epoch_count > s.target_kl:
            break
    with watch("forward"):
        sample = torch.from_numpy(order.permutation(whole.sequences)[: -(-whole.sequences * epochs // _KL_PASSES)])
        kl = optimizer.kl(batch, whole.here(sample))
    sums_of, kl_of, ratio_errors = zip(*whole.group.gather((dict(sums), kl, ratio_error)), strict=True)
    ratio_error = max(ratio_errors)
    names = dict.fromkeys(name for of_rank in sums_of for name in of_rank)
    means = {name: sum(of_rank.get(name, 0.0) for of_rank in sums_of) / counted for name in names}
    ratio, squared = means.pop(RATIO, math.nan), means.pop(RATIO_SQUARED, math.nan)
    return means | {
        "effective_sample_size": ratio**2 / squared,
        "kl": sum(kl_of) / max(1, int(steps_B[sample].sum())),
        "grad_norm": grad_norm / minibatches if minibatches else math.nan,
        "nonfinite_steps": float(skipped),
        "ratio_error": ratio_error,
        "epochs": float(epochs),
        "learning_rate": optimizer.learning_rate,
        "clip_range": optimizer.settings.clip_range,
        "ent_coef": optimizer.settings.ent_coef,
    }
