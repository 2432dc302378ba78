"""Why a gradient may not be finite, as far as the run at hand tells, and what reproduces it."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mneme.controllers import Image, Policy
from mneme.controllers.normalizer import Normalizer
from mneme.learner.batch import SequenceBatch
from mneme.learner.group import Group
from mneme.learner.returns import Returns

_LARGE = 1e4  # what observations, rewards and targets of one's own choosing hardly exceed


class FailedUpdate(NamedTuple):
    """An update that came to nothing, as what it began with: on the same machine it fails again in the same way."""

    state: dict[str, np.ndarray]  # of the learner
    batches: tuple[pa.RecordBatch, ...]  # its fragments; as a learner of a group says it, those of its rank


class NonfiniteGradient(FloatingPointError):
    """Too many gradients in a row were not finite; the message is for the user."""

    update: FailedUpdate | None = None
    """The update in which it happened, where a learner says it; an attribute, as processes send exceptions so."""


def suspects(
    policy: Policy, batch: SequenceBatch, returns: Returns, learning_rate: float, stepped: bool, group: Group
) -> str:
    """The likeliest causes of a gradient that is not finite, with remedies: large numbers in the batch, else the
    learning rate if the weights have changed, else the network, which then overflowed on ordinary numbers.

    Args:
        returns: of the group's whole batch.
        stepped: true if the weights have been changed at all.
        group: of which the batch is this rank's part.
    """
    normalized = any(isinstance(module, Normalizer) for module in policy.modules())
    own = [_largest(batch.rewards), *(_largest(batch.observations[name]) for name in policy.spec.observations)]
    rewards, *parts = (max(of_all) for of_all in zip(*group.gather(own), strict=True))
    found = []
    for (name, part), reached in zip(policy.spec.observations.items(), parts, strict=True):
        largest = reached * (part.scale if isinstance(part, Image) else 1.0)
        if largest > _LARGE and (isinstance(part, Image) or not normalized):  # vectors alone are normalised
            remedy = "set spaces.scale" if isinstance(part, Image) else "set policy.normalize_observations=true"
            found.append(f"part {name} of the observations reaches {largest:.3g}; scale it, or {remedy}")
    if rewards > _LARGE:
        found.append(f"rewards reach {rewards:.3g}; scale them, or set learner.normalize_rewards=true")
    elif (largest := _largest(returns.targets)) > _LARGE:
        found.append(f"the values' targets reach {largest:.3g}; lower learner.gamma, or scale the rewards")
    if found:
        return "; ".join(found)
    if stepped:
        return f"lower learner.learning_rate ({learning_rate:g})"
    return (
        f"the weights are those of the start and the batch is ordinary, so the network itself overflows over "
        f"{batch.length} steps; lower rollout.unroll_length, or choose other policy.controller settings"
    )


def _largest(x: Tensor) -> float:
    """The largest magnitude of floats; 0 of other numbers, which are categories or bytes."""
    if not x.is_floating_point() or not x.numel():
        return 0.0
    largest = float(x.abs().max())
    return largest if largest == largest else torch.inf
