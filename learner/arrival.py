"""The choice among fragments that arrive: those that the learners can use, and why the others are refused."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.group import Group
from mneme.rollout_workers.fragment import Fragment, FragmentError


class _Sizes(NamedTuple):
    """The sizes that the fragments of an update must share."""

    length: int
    carry_stride: int
    warm_up: int

    def __str__(self) -> str:
        return f"{self.length} steps with a carry every {self.carry_stride} and {self.warm_up} steps of its past"


class Arrivals(NamedTuple):
    """The fragments of an update that fit each other, the policy and its version, those of all learners of a group."""

    batch: SequenceBatch  # of this rank's, perhaps of no sequence
    lags: list[float]  # versions that each of all ranks' is behind
    refused: list[str]  # one sentence for each of all ranks' that does not fit


def arrivals(
    batches: Iterable[pa.RecordBatch],
    policy: Policy,
    version: int,
    group: Group,
    device: torch.device,
    *,
    packed: bool = False,
) -> Arrivals:
    """The choice among this rank's fragments and all others', which is the same on every rank. Of `packed` ones, which
    are episodes end to end, it takes no more steps than the fullest row of all ranks has.

    Raises:
        FragmentError: there is none to choose.
    """
    read = [_read(batch, policy, version) for batch in batches]
    told = [
        (fragment, None, 0.0, 0)
        if isinstance(fragment, str)
        else ("", _sizes(fragment), float(version - fragment.weights_version.min()), _filled(fragment))
        for fragment in read
    ]
    every = [
        (why, sizes and _Sizes(*sizes), lag, filled)
        for of_rank in group.gather(told)
        for why, sizes, lag, filled in of_rank
    ]
    wanted = next((sizes for _, sizes, *_ in every if sizes), None)
    refused = [
        why or f"a fragment has {sizes}, others have {wanted}; use one setting"
        for why, sizes, *_ in every
        if sizes is None or sizes != wanted
    ]
    if wanted is None:
        raise FragmentError(refused[0] if refused else "an update was asked for without any fragment")
    own = [fragment for fragment in read if isinstance(fragment, Fragment) and _sizes(fragment) == wanted]
    length = max(filled for _, sizes, _, filled in every if sizes == wanted) if packed else wanted.length
    if own:
        batch = SequenceBatch.from_fragments(own, device, length=length, packed=packed)
    else:
        batch = SequenceBatch.empty(length, wanted.carry_stride, policy.spec, device)
    return Arrivals(batch, [lag for _, sizes, lag, _ in every if sizes == wanted], refused)


def _read(batch: pa.RecordBatch, policy: Policy, version: int) -> Fragment | str:
    """A fragment, or why it cannot be used."""
    try:
        fragment = Fragment.from_arrow(batch)
        fragment.validate()
        if (fragment.weights_version > version).any():
            raise FragmentError(
                f"a fragment claims weights version {fragment.weights_version.max()} but the learner is at "
                f"{version}; do not mix the fragments of two runs"
            )
        _require_fit(fragment, policy)
    except FragmentError as error:
        return str(error)
    return fragment


@torch.no_grad()
def _require_fit(fragment: Fragment, policy: Policy) -> None:
    """Try one step of one lane, so that what another policy has made is found before anything is made of it."""
    distribution, device = policy.action_distribution, next(policy.parameters()).device
    action = torch.from_numpy(fragment.actions[:1, 0].copy())[0]
    try:
        if action.dtype != distribution.action_dtype or action.shape != distribution.action_shape:
            raise ValueError(
                f"an action is {action.dtype} of shape {list(action.shape)}; "
                f"it must be {distribution.action_dtype} of shape {list(distribution.action_shape)}"
            )
        policy.scan(
            {name: torch.from_numpy(part[:1, :1].copy()).to(device) for name, part in fragment.observations.items()},
            torch.from_numpy(fragment.resets[:1, :1].copy()).to(device),
            {name: torch.from_numpy(carry[:1, 0].copy()).to(device) for name, carry in fragment.carries.items()},
        )
    except (ValueError, TypeError) as error:
        raise FragmentError(
            f"a fragment does not fit the policy: {error}; do not mix the fragments of two runs"
        ) from None


def _filled(fragment: Fragment) -> int:
    """Steps up to the last valid one of any row."""
    return int(np.flatnonzero(fragment.valid.any(0))[-1]) + 1


def _sizes(fragment: Fragment) -> _Sizes:
    return _Sizes(fragment.length, fragment.carry_stride, fragment.warm_up)
