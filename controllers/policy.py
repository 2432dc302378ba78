"""The agent's network: encoder, controller, LayerNorm, and heads for action and value.

Axis letters: T time, B lanes, D observation features, A action parameters, H hidden.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from controllers.actions import ActionHead, Categorical
from controllers.controller import Carry
from controllers.initialisation import linear
from controllers.mlp import dense
from controllers.registry import build_controller
from controllers.settings import PolicySettings


@dataclass(frozen=True)
class PolicySpec:
    """What the task fixes about the network."""

    observation_size: int
    """Features of one flat observation."""

    actions: int
    """How many discrete actions there are."""

    def __post_init__(self) -> None:
        if self.observation_size < 1:
            raise ValueError(f"the observation size is {self.observation_size}; it must be at least 1")


class PolicyOutput(NamedTuple):
    """A policy's view of a sequence."""

    logits_TBA: Tensor  # [T, B, A] parameters of the action distribution
    value_TB: Tensor  # [T, B] expected discounted return
    carry: Carry  # after the last step


class Act(NamedTuple):
    """One decision a lane."""

    action_B: Tensor  # int64 [B]
    log_prob_B: Tensor  # [B] of that action under the policy, in nats
    value_B: Tensor  # [B] expected discounted return
    carry: Carry  # after this step


class Policy(nn.Module):
    """Acting is the scan with T = 1, so what was acted is what is trained."""

    def __init__(self, spec: PolicySpec, settings: PolicySettings, horizon: int, generator: Generator) -> None:
        super().__init__()
        self.action_head: ActionHead = Categorical(spec.actions)
        self.encoder = dense(spec.observation_size, settings.encoder, generator)
        encoded_size = settings.encoder[-1] if settings.encoder else spec.observation_size
        self.controller = build_controller(settings.controller, encoded_size, horizon, generator)
        hidden = self.controller.output_size
        self.norm = nn.LayerNorm(hidden) if settings.controller.output_norm else nn.Identity()
        self.policy_head = linear(hidden, self.action_head.parameter_size, 0.01, generator)
        self.value_head = linear(hidden, 1, 1.0, generator)

    def initial_carry(self, batch: int) -> Carry:
        """What `batch` fresh lanes start from."""
        return self.controller.initial_carry(batch)

    def scan(self, obs_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> PolicyOutput:
        """Run over [T, B, D] observations; the rules are those of `Controller.scan`."""
        y_TBH, carry = self.controller.scan(self.encoder(obs_TBD), reset_TB, carry)
        y_TBH = self.norm(y_TBH)
        return PolicyOutput(self.policy_head(y_TBH), self.value_head(y_TBH).squeeze(-1), carry)

    @torch.no_grad()
    def act(self, obs_BD: Tensor, reset_B: Tensor, carry: Carry, uniform_B: Tensor, greedy: bool = False) -> Act:
        """Choose one action a lane from noise in [0, 1), or the most probable one; without autograd."""
        logits_TBA, value_TB, carry = self.scan(obs_BD.unsqueeze(0), reset_B.unsqueeze(0), carry)
        logits_BA = logits_TBA[0]
        action_B = self.action_head.mode(logits_BA) if greedy else self.action_head.sample(logits_BA, uniform_B)
        return Act(action_B, self.action_head.log_prob(logits_BA, action_B), value_TB[0], carry)

    @torch.no_grad()
    def value(self, obs_BD: Tensor, reset_B: Tensor, carry: Carry) -> Tensor:
        """Expected discounted return [B] of observations that are looked at but not acted on."""
        return self.scan(obs_BD.unsqueeze(0), reset_B.unsqueeze(0), carry).value_TB[0]


def build_policy(spec: PolicySpec, settings: PolicySettings, horizon: int, seed: int) -> Policy:
    """A fresh float32 policy on the CPU; equal arguments give equal bits, whatever the global random state.

    `horizon` is the longest time, in steps, over which the task asks to remember.

    Raises:
        ValueError: a size is out of range or the controller is unknown.
    """
    if horizon < 1:
        raise ValueError(f"the horizon is {horizon}; it must be at least 1 step")
    return Policy(spec, settings, horizon, Generator().manual_seed(seed))
