"""Acting for many steps in a row with weights that stay as they are, as rollouts and evaluations do.

Axis letters: B environments, H hidden, F features that the heads read.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mneme.controllers.actions import Categorical
from mneme.controllers.controller import Carry
from mneme.controllers.mlp import Layer, layers_of
from mneme.controllers.observations import Observation
from mneme.controllers.policy import Act, Policy
from mneme.controllers.scans.backends import obstacle

MOST_ACTIONS = 64
"""That compiled heads take: with more, torch's matrix products are faster than a loop over actions."""


def heads_compile(policy: Policy, like: Tensor | None = None) -> bool:
    """Whether the heads are compiled: on a CPU, of one choice of a few without masks; on outputs like this tensor, if
    one is given."""
    distribution = policy.action_distribution
    like = policy.value_head.weight if like is None else like
    return (
        obstacle("numba", like.device, like.dtype, forced=False) is None
        and isinstance(distribution, Categorical)
        and distribution.actions <= MOST_ACTIONS
        and not policy.spec.masked
        and policy.spec.value_bins == 1
        and like.dtype == policy.value_head.weight.dtype
    )


def head_inputs(policy: Policy, y_H: Tensor) -> Tensor:
    """What compiled heads read [..., F] of the controller's outputs [..., H]: the outputs, or where the heads have
    hidden layers, what these make of them, those of the action first."""
    if not policy.policy_hidden:
        return y_H
    normed_H = policy.norm(y_H)
    return torch.cat((policy.policy_hidden(normed_H), policy.value_hidden(normed_H)), -1)


def hidden_layers(policy: Policy) -> list[Layer]:
    """The hidden layers of both heads as those of one, which gives what `head_inputs` gives; none if there are none."""
    pairs = list(zip(layers_of(policy.policy_hidden), layers_of(policy.value_hidden), strict=True))
    return [
        (torch.block_diag(*weights) if number else torch.cat(weights), torch.cat(biases))
        for number, (weights, biases) in enumerate(zip(*pair, strict=True) for pair in pairs)
    ]


def head_parameters(policy: Policy) -> tuple[Tensor, ...]:
    """The parameters that compiled heads have, in the order of `controllers.scans.heads.Heads`: each reads all of
    `head_inputs`, so that what is the other's has weight 0."""
    action, value = policy.policy_head, policy.value_head
    none = value.weight.new_empty(2, 0).unbind()
    if policy.policy_hidden:
        of_action, of_value = pad(action.weight, (0, value.in_features)), pad(value.weight, (action.in_features, 0))
        return (*none, of_action, action.bias, of_value, value.bias)
    norm = none if isinstance(policy.norm, nn.Identity) else tuple(policy.norm.parameters())
    return (*norm, *action.parameters(), *value.parameters())


class Actor:
    """`Policy.act` with the policy's weights as they are now; once they have changed, another is needed.

    What depends on weights alone is done once, and where they compile, norm, heads and the choice are one kernel, and
    each hidden layer before them, and of the encoder, is another.

    Args:
        policy: what acts.
        greedy: take the most probable action.
    """

    def __init__(self, policy: Policy, greedy: bool = False) -> None:
        self._policy, self._greedy, self._step = policy, greedy, policy.controller.stepper()
        self._choice: Any = None
        self._encode: Callable[[Tensor], Tensor] | None = policy.encoder if layers_of(policy.encoder) else None
        self._hidden: Callable[[Tensor], Tensor] | None = None
        if heads_compile(policy):
            from mneme.controllers.scans.choice import Choice  # here, as numba may be missing
            from mneme.controllers.scans.rows.dense import DenseLayers

            self._choice = Choice(head_parameters(policy), greedy)
            if self._encode is not None:
                self._encode = DenseLayers(layers_of(policy.encoder))
            if policy.policy_hidden:
                norm = None if isinstance(policy.norm, nn.Identity) else policy.norm
                self._hidden = DenseLayers(hidden_layers(policy), norm)

    def act(self, observations: Observation, reset_B: Tensor, carry: Carry, uniform_BN: Tensor) -> Act:
        """One action a lane; the carry may be overwritten, and what is returned is good until the next call.

        Raises:
            ValueError: an observation does not fit the policy, or the arguments are of different numbers of lanes.
        """
        if torch.is_grad_enabled():  # as a rule it is not, and asking takes less time than saying so again
            with torch.no_grad():
                return self.act(observations, reset_B, carry, uniform_BN)
        lanes = {x.shape[0] for x in (reset_B, uniform_BN, *carry.values())}
        if len(lanes) > 1:
            raise ValueError(f"reset flags, noise and carry are of {sorted(lanes)} lanes; give all for as many")
        x_BD, carry, frames = self._policy.observed(observations, reset_B, carry)
        if self._encode is not None:
            x_BD = self._encode(x_BD)
        y_BH, carry = self._step(x_BD, reset_B, carry)
        if self._choice is None:
            action_B, log_prob_B, value_B = self._policy.choice(y_BH, observations, uniform_BN, self._greedy)
        else:
            read_BF = y_BH if self._hidden is None else self._hidden(y_BH)
            action_B, log_prob_B, value_B = self._choice(read_BF, uniform_BN)
        return Act(action_B, log_prob_B, value_B, carry | frames)

    def value(self, observations: Observation, reset_B: Tensor, carry: Carry) -> Tensor:
        """`Policy.value` [B]; a call like any other, after which the carry of the one before is good no longer.

        Raises:
            ValueError: as for `act`.
        """
        shape = len(reset_B), self._policy.action_distribution.noise_size
        uniform_BN = torch.full(shape, 0.5, dtype=torch.float32, device=reset_B.device)
        return self.act(observations, reset_B, carry, uniform_BN).value_B
