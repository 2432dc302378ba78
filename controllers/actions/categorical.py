"""One of several choices.

Axis letters: B environments (any leading axes), A actions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mneme.controllers.actions.distribution import BELOW_ONE, ActionDistribution


@dataclass(frozen=True)
class Categorical(ActionDistribution):
    """One of `actions` choices; the parameters are unnormalised log-probabilities, -inf for "never"."""

    actions: int

    def __post_init__(self) -> None:
        if self.actions < 1:
            raise ValueError(f"the number of actions is {self.actions}; it must be at least 1")

    @property
    def parameter_size(self) -> int:
        return self.actions

    @property
    def action_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.int64

    @property
    def mask_size(self) -> int:
        return self.actions

    @property
    def feature_size(self) -> int:
        return self.actions

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        """The action whose stretch of the cumulative distribution holds the noise: [B, A], [B, 1] -> int64 [B].

        An action of probability zero is never given.
        """
        cdf_BA = parameters.softmax(-1).cumsum(-1)
        target_B1 = uniform.clamp(max=BELOW_ONE) * cdf_BA[..., -1:]
        return (cdf_BA <= target_B1).sum(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return parameters.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_p_BA = _finite(parameters.log_softmax(-1))
        return -(log_p_BA.exp() * log_p_BA).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q): [B, A], [B, A] -> [B], in nats; huge, not infinite, where q excludes what p allows."""
        log_p_BA, log_q_BA = _finite(p.log_softmax(-1)), _finite(q.log_softmax(-1))
        return (log_p_BA.exp() * (log_p_BA - log_q_BA)).sum(-1)

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        # A row that allows nothing is padding: whoever acts refuses it, and NaN here would spread through gradients.
        return parameters.masked_fill(~mask & mask.any(-1, keepdim=True), -torch.inf)

    def features(self, action: Tensor) -> Tensor:
        """One-hot: int64 [B] -> [B, A]."""
        return (action.unsqueeze(-1) == torch.arange(self.actions, device=action.device)).float()


def _finite(log_p: Tensor) -> Tensor:
    """Keep 0 * log 0 at 0, in the value and in the gradient."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min / 2)
