"""Real numbers, unbounded or squashed into (-1, 1).

Axis letters: B lanes (any leading axes), A numbers in one action, Q quadrature nodes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from controllers.actions.head import BELOW_ONE, ActionHead

LOG_STD_RANGE = (-5.0, 2.0)  # below, float32's rounding of a mean of size 1 would move ratios by more than 1e-5
NODES, REACH = 33, 5.5  # of the quadrature, the reach in standard deviations


@dataclass(frozen=True)
class Gaussian(ActionHead):
    """`size` independent normal numbers; the parameters are all means, then all log standard deviations.

    Log standard deviations are clamped to `LOG_STD_RANGE`. The action is float32 [B, A]. With `squash` the
    environment receives tanh(action) (Haarnoja et al. 2018): actions here stay unsquashed, so that no inverse of tanh
    loses digits, while log-probabilities and entropies are those of the squashed number.
    """

    size: int
    squash: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the number of real actions is {self.size}; it must be at least 1")

    @property
    def parameter_size(self) -> int:
        return 2 * self.size

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.float32

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        """The quantile at the noise, which is kept off 0 and 1: within 5.5 standard deviations of the mean."""
        mean_BA, log_std_BA = _mean_log_std(parameters)
        return mean_BA + log_std_BA.exp() * torch.special.ndtri(uniform.clamp(2.0**-25, BELOW_ONE))

    def mode(self, parameters: Tensor) -> Tensor:
        """The mean; of a squashed action it is the median."""
        return _mean_log_std(parameters)[0]

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Haarnoja et al. 2018, appendix C, equation 21, with `_log_slope` for the logarithm of 1 - tanh²."""
        mean_BA, log_std_BA = _mean_log_std(parameters)
        z_BA = (action - mean_BA) * (-log_std_BA).exp()
        log_p_BA = -0.5 * (z_BA.square() + math.log(2 * math.pi)) - log_std_BA
        return (log_p_BA - _log_slope(action) if self.squash else log_p_BA).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """In closed form; what squashing takes away by the trapezoidal rule over ±`REACH` standard deviations.

        Its error is below 1e-6 nats a number up to a standard deviation of 2, and 0.02 at the largest, e².
        """
        mean_BA, log_std_BA = _mean_log_std(parameters)
        entropy_BA = 0.5 * (1 + math.log(2 * math.pi)) + log_std_BA
        if self.squash:
            z_Q = torch.linspace(-REACH, REACH, NODES, dtype=mean_BA.dtype, device=mean_BA.device)
            weight_Q = (-0.5 * z_Q.square()).softmax(-1)
            u_BAQ = mean_BA.unsqueeze(-1) + log_std_BA.exp().unsqueeze(-1) * z_Q
            entropy_BA = entropy_BA + _log_slope(u_BAQ) @ weight_Q
        return entropy_BA.sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q): [B, 2A], [B, 2A] -> [B], in nats; squashing both does not change it."""
        (p_mean, p_log_std), (q_mean, q_log_std) = _mean_log_std(p), _mean_log_std(q)
        log_ratio_BA = p_log_std - q_log_std
        distance_BA = (p_mean - q_mean) * (-q_log_std).exp()
        return (0.5 * ((2 * log_ratio_BA).exp() + distance_BA.square() - 1) - log_ratio_BA).sum(-1)

    def features(self, action: Tensor) -> Tensor:
        """What the environment receives."""
        return action.tanh() if self.squash else action


def _mean_log_std(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean_BA, log_std_BA = parameters.chunk(2, -1)
    return mean_BA, log_std_BA.clamp(*LOG_STD_RANGE)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh²(u)), elementwise; finite for every finite u."""
    return 2 * (math.log(2) - u - softplus(-2 * u))
