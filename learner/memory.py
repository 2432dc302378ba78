"""The memory that an update needs, estimated before there is any data.

Legend: B sequences, T steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.controllers.acting import heads_compile
from mneme.learner.objective import Steps
from mneme.learner.ppo import loss_of
from mneme.learner.settings import LearnerSettings

_PROBED = 256  # steps of a sequence whose activations are counted; beyond, they grow in proportion
_PASSING = 5  # arrays of a controller's outputs that come and go in the backward pass, beside what is kept for it
_PASSING_COMPILED = 1  # likewise, where the objective is compiled
_STORED = 0.7  # of the activations, where carries are stored: windows are worked on in pieces
_OF_WEIGHTS = 5  # arrays of their size: themselves, Adam's two moments, the sum of gradients, the state before


class UpdateMemory(NamedTuple):
    """The parts of an update's memory, in bytes."""

    weights: int  # with what Adam and the threads keep of their size
    batch: int
    activations: int  # kept for the backward pass at once

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def update_memory(
    policy: Policy, s: LearnerSettings, *, length: int, sequences: int, batch_bytes: int, threads: int, copies: int = 1
) -> UpdateMemory:
    """An estimate for an update, from the activations of one sequence on the policy's device.

    Args:
        policy: what is trained.
        s: the learner's settings.
        length: T.
        sequences: B of a batch.
        batch_bytes: of the fragments of an update.
        threads: among which a minibatch is split.
        copies: of the weights, and what goes with them.
    """
    plan = s.plan(length)
    at_once = -(-min(sequences, -(-sequences // s.num_minibatches)) // s.gradient_accumulation)
    steps = min(plan.chunk if plan.window == length else length, length)
    probed = min(steps, _PROBED)
    of_one, of_two = (_kept(policy, s, probed, B) for B in (1, 2))
    arrays = _PASSING_COMPILED if heads_compile(policy) else _PASSING
    passing = arrays * policy.controller.output_size * policy.value_head.weight.element_size()
    if s.mode == "traces":  # those that enter and those that leave, and what the lanes keep
        batch_bytes += 3 * sequences * sum(trace.nbytes for trace in policy.no_traces(1).values())
    activations = at_once * steps * ((of_two - of_one) / probed + passing)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters()) * (_OF_WEIGHTS + threads) * copies
    if plan.window < length:  # stored carries are most of a fragment, and are left where they lie
        return UpdateMemory(weights, batch_bytes, int(_STORED * activations))
    return UpdateMemory(weights, 2 * batch_bytes, int(activations))


def _kept(policy: Policy, s: LearnerSettings, T: int, B: int) -> int:
    """Bytes that are kept for the backward pass of T steps of B sequences, parameters included."""
    sizes: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    device, distribution = next(policy.parameters()).device, policy.action_distribution
    flags_TB = torch.zeros(T, B, dtype=torch.bool, device=device)
    numbers_TB = torch.zeros(T, B, dtype=policy.value_head.weight.dtype, device=device)
    actions = torch.zeros(T, B, *distribution.action_shape, dtype=distribution.action_dtype, device=device)
    steps = Steps(policy.blank(T, B), flags_TB, None, ~flags_TB, actions, *[numbers_TB] * 4)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss = loss_of(policy, s, steps, policy.initial_carry(B), B, None)
    del loss  # until here everything that was kept has an address of its own
    return sum(sizes.values())
