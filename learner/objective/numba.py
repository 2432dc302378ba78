"""The objective compiled by numba for CPUs: LayerNorm, heads, softmax, loss, and the gradient of all of it, one
step after the other while it lies in the cache.

In torch these are some eighty operations forward and back, which together take longer than the recurrence of a GRU.
`controllers.scans.norm_row` has the norm and the way back through it, `controllers.scans.heads` the way forward to
log-probabilities and value. A step's own numbers are in double precision, whatever the arrays are. Legend: K steps, W
windows, H features, A actions.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers import Policy
from mneme.controllers.acting import head_inputs, head_parameters
from mneme.controllers.scans.heads import Heads, read
from mneme.controllers.scans.machine_code import arrays, compiled, copy, fma, kernel, scale, scratch
from mneme.controllers.scans.norm_row import back_through_norm, normalised
from mneme.learner.objective.plain import OBJECTIVE_SUMS, Objective, Steps
from mneme.learner.settings import LearnerSettings


class _Given(NamedTuple):
    """What the steps' losses depend on besides the controller's outputs, [W, K] each."""

    mask: Any
    actions: Any
    old_log_probs: Any
    old_values: Any
    advantages: Any
    targets: Any


class _Weighing(NamedTuple):
    """The learner's settings; a bound that is not set is infinite."""

    clip: float
    dual_clip: float
    value_clip: float
    huber: float  # error from which the value loss grows in a line
    value: float
    entropy: float
    loss: float  # all of it


def compiled_objective(
    policy: Policy, s: LearnerSettings, steps: Steps, y_KWH: Tensor, weight: float = 1.0
) -> Objective:
    """`plain_objective`, where the heads compile; see `heads_compile`."""
    given = (steps.mask, steps.actions, steps.old_log_probs, steps.old_values, steps.advantages, steps.targets)
    weighing = _Weighing(
        clip=s.clip_range,
        dual_clip=np.inf if s.dual_clip is None else s.dual_clip,
        value_clip=np.inf if s.clip_range_vf is None else s.clip_range_vf,
        huber=1.0 if s.value_loss == "huber" else np.inf,
        value=s.vf_coef,
        entropy=s.ent_coef,
        loss=weight,
    )
    found = np.zeros(len(OBJECTIVE_SUMS) + 1)
    given_arrays = _Given(*arrays(*(x.t() for x in given)))  # as they lie
    total = _Objective.apply(given_arrays, weighing, found, head_inputs(policy, y_KWH), *head_parameters(policy))
    *summed, ratio_error = found.tolist()
    return Objective(total, dict(zip(OBJECTIVE_SUMS, summed, strict=True)), ratio_error)


class _Objective(torch.autograd.Function):
    """The loss is one number, so that its gradient is made with it, and scaled on the way back."""

    @staticmethod
    def forward(
        ctx: Any, given: _Given, weighing: _Weighing, found: np.ndarray, y_KWH: Tensor, *heads: Tensor
    ) -> Tensor:
        y, *parameters = arrays(y_KWH, *heads)
        dy, d_heads = np.empty_like(y), [np.zeros_like(x) for x in parameters]
        room = scratch(y_KWH, (3, y.shape[2]), (3, len(heads[2])))
        _objective(y, given, Heads(*parameters), weighing, dy, Heads(*d_heads), found, *room)
        ctx.save_for_backward(*map(torch.from_numpy, (dy, *d_heads)))
        policy_loss, value_loss, entropy = found[:3]
        total = policy_loss + weighing.value * value_loss - weighing.entropy * entropy
        return y_KWH.new_tensor(weighing.loss * total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        gradients, factor = ctx.saved_tensors, float(dtotal)
        return None, None, None, *(gradients if factor == 1 else (gradient.mul_(factor) for gradient in gradients))


@kernel
def _objective(y, given, heads, weighing, dy, d, found, wide, narrow):
    (K, W, _), A, normed, number = y.shape, len(heads.policy), len(heads.gain) > 0, y.dtype.type
    n, out, d_out = wide[0], wide[1], wide[2]
    log_p, p, d_logits = narrow[0], narrow[1], narrow[2]
    for r in range(K * W):
        k, w = r // W, r % W
        if not given.mask[w, k]:
            dy[k, w] = number(0)
            continue
        numbers = normalised(y[k, w], heads.gain, heads.shift, n, out)
        value = read(out, heads, log_p, p)
        d_value = number(_loss((w, k), given, weighing, log_p, p, value, d_logits, found))
        _add_scaled(d.value[0], d_value, out)
        d.value_bias[0] += d_value
        scale(d_out, d_value, heads.value[0])
        for a in range(A):
            _add_scaled(d.policy[a], d_logits[a], out)
            d.policy_bias[a] += d_logits[a]
            _add_scaled(d_out, d_logits[a], heads.policy[a])
        if normed:
            back_through_norm(d_out, heads.gain, n, numbers, dy[k, w], d.gain, d.shift, out)
        else:
            copy(dy[k, w], d_out)


@compiled
def _loss(place, given, weighing, log_p, p, value, d_logits, found):
    """Add one step's terms to `found` and fill in the gradient of the logits; returns that of the value."""
    advantage, target, old_value = (
        np.float64(given.advantages[place]), np.float64(given.targets[place]), np.float64(given.old_values[place]),
    )  # fmt: skip
    action = given.actions[place]
    log_ratio = np.float64(log_p[action]) - np.float64(given.old_log_probs[place])
    ratio = np.exp(log_ratio)
    within = min(max(ratio, 1 - weighing.clip), 1 + weighing.clip)
    loss, slope = -ratio * advantage, -ratio * advantage  # slope: in the log-probability of the action
    if -within * advantage > loss:
        loss, slope = -within * advantage, 0.0
    if advantage < 0 and loss > -weighing.dual_clip * advantage:
        loss, slope = -weighing.dual_clip * advantage, 0.0
    entropy = 0.0
    for a in range(len(p)):
        if p[a] != 0:
            entropy -= np.float64(p[a]) * log_p[a]
    for a in range(len(p)):
        of_entropy = p[a] * (log_p[a] + entropy) if p[a] != 0 else 0.0
        d_logits[a] = weighing.loss * fma(weighing.entropy, of_entropy, -slope * p[a])
    d_logits[action] += weighing.loss * slope
    error, change = value - target, value - old_value
    value_loss, d_value = _value_loss(error, weighing.huber)
    if abs(change) > weighing.value_clip:
        clipped, _ = _value_loss(old_value + np.copysign(weighing.value_clip, change) - target, weighing.huber)
        if clipped > value_loss:
            value_loss, d_value = clipped, 0.0
    off = abs(ratio - 1)
    found[0] += loss
    found[1] += value_loss
    found[2] += entropy
    found[3] += ratio - 1 - log_ratio
    found[4] += 1.0 if off > weighing.clip else 0.0
    found[5] += ratio
    found[6] += ratio * ratio
    if off > found[7] or off != off:
        found[7] = off
    return weighing.loss * (weighing.value * d_value)


@compiled
def _value_loss(error, huber):
    """Half the error's square, or from `huber` on a line; and its derivative."""
    size = abs(error)
    if size > huber:
        return huber * (size - 0.5 * huber), np.copysign(huber, error)
    return 0.5 * error * error, error


@compiled
def _add_scaled(to, factor, x):
    for i in range(len(to)):
        to[i] += factor * x[i]
