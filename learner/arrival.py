"""The choice among fragments that arrive: those that the learner can use, and why the others are refused."""

from collections.abc import Iterable

import pyarrow as pa
import torch

from mneme.controllers import Policy
from mneme.rollout_workers.fragment import Fragment, FragmentError


def accepted(batches: Iterable[pa.RecordBatch], policy: Policy, version: int) -> tuple[list[Fragment], list[str]]:
    """The fragments that fit each other, this policy and its version, and one sentence for each that does not."""
    fragments: list[Fragment] = []
    refused: list[str] = []
    for batch in batches:
        try:
            fragment = Fragment.from_arrow(batch)
            fragment.validate()
            if (fragment.weights_version > version).any():
                raise FragmentError(
                    f"a fragment claims weights version {fragment.weights_version.max()} but the learner is at "
                    f"{version}; do not mix the fragments of two runs"
                )
            _require_fit(fragment, policy)
            if fragments and _sizes(fragment) != _sizes(fragments[0]):
                raise FragmentError(
                    f"a fragment has {_sizes(fragment)}, others have {_sizes(fragments[0])}; use one setting"
                )
        except FragmentError as error:
            refused.append(str(error))
        else:
            fragments.append(fragment)
    return fragments, refused


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


def _sizes(fragment: Fragment) -> str:
    """The sizes that the fragments of an update must share, in words."""
    return (
        f"{fragment.length} steps with a carry every {fragment.carry_stride} and {fragment.warm_up} steps of its past"
    )
