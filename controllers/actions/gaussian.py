"""Real numbers, unbounded or squashed into (-1, 1).

The log standard deviation is the network's number x, bent at both ends, so that it keeps within `LOG_STD_RANGE` and
that no x is so far out that its gradient is zero: with c = clamp(x, -4.5, 1.5) it is c + d / (1 + 2 |d|), d = x - c.

Axis letters: B environments (any leading axes), A numbers in one action, Q quadrature nodes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus, softsign

from mneme.controllers.actions.distribution import BELOW_ONE, ActionDistribution

LOG_STD_RANGE = (-5.0, 2.0)  # below, float32's rounding of a mean of size 1 would move ratios by more than 1e-5
_NODES, _STEP, _SHARE = 16, 0.5, 0.75  # of the quadrature: nodes on each side; their distance, and in deviations
BEND = 0.5  # from each limit; between the bends the log standard deviation is the network's number


@dataclass(frozen=True)
class Gaussian(ActionDistribution):
    """`size` independent normal numbers; the parameters are all means, then all log standard deviations.

    Log standard deviations keep within `LOG_STD_RANGE`. The action is float32 [B, A]. With `squash` the
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
        mean_BA, log_std_BA = mean_log_std(parameters)
        return mean_BA + log_std_BA.exp() * torch.special.ndtri(uniform.clamp(2.0**-25, BELOW_ONE))

    def mode(self, parameters: Tensor) -> Tensor:
        """The mean; of a squashed action it is the median."""
        return mean_log_std(parameters)[0]

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Haarnoja et al. 2018, appendix C, equation 21, with `_log_derivative` for the logarithm of 1 - tanh²."""
        mean_BA, log_std_BA = mean_log_std(parameters)
        z_BA = (action - mean_BA) * (-log_std_BA).exp()
        log_p_BA = -0.5 * (z_BA.square() + math.log(2 * math.pi)) - log_std_BA
        return (log_p_BA - _log_derivative(action) if self.squash else log_p_BA).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """In closed form; squashed, right to 1e-6 nats a number in double precision, whatever mean and deviation."""
        mean_BA, log_std_BA = mean_log_std(parameters)
        entropy_BA = 0.5 * (1 + math.log(2 * math.pi)) + log_std_BA
        if self.squash:
            entropy_BA = entropy_BA - 2 * _mean_log_cosh(mean_BA, log_std_BA.exp())
        return entropy_BA.sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q): [B, 2A], [B, 2A] -> [B], in nats; squashing both does not change it."""
        (p_mean, p_log_std), (q_mean, q_log_std) = mean_log_std(p), mean_log_std(q)
        log_ratio_BA = p_log_std - q_log_std
        distance_BA = (p_mean - q_mean) * (-q_log_std).exp()
        return (0.5 * ((2 * log_ratio_BA).exp() + distance_BA.square() - 1) - log_ratio_BA).sum(-1)

    def features(self, action: Tensor) -> Tensor:
        """The action as the environment receives it."""
        return action.tanh() if self.squash else action


def mean_log_std(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2A] -> mean and log standard deviation, each [B, A]."""
    mean_BA, x_BA = parameters.chunk(2, -1)
    least, most = LOG_STD_RANGE
    c_BA = x_BA.clamp(least + BEND, most - BEND)
    return mean_BA, c_BA + BEND * softsign((x_BA - c_BA) / BEND)


def _log_derivative(u: Tensor) -> Tensor:
    """log(1 - tanh²(u)), elementwise; finite for every finite u."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


def _mean_log_cosh(mean: Tensor, std: Tensor) -> Tensor:
    """E log cosh(u) of a normal u, elementwise.

    log cosh(u) + log 2 is s(u) + r(u), where s(u) = E |u + v| for a standard normal v. The mean of s is E |u + v| in
    closed form, and r is smooth and all but zero beyond ±8. Where the normal is wide, the trapezoidal rule takes the
    mean of r over nodes around 0, and else around the mean, closer together where the normal is narrower: its error
    falls exponentially with what is the narrower of r and the normal, over the distance of the nodes.
    """
    step = (_SHARE * std).clamp(max=_STEP)
    centre = torch.where(_SHARE * std > _STEP, 0.0, mean)
    nodes_Q = torch.arange(-_NODES, _NODES + 1, dtype=mean.dtype, device=mean.device)
    u_BAQ = centre.unsqueeze(-1) + step.unsqueeze(-1) * nodes_Q
    z_BAQ = (u_BAQ - mean.unsqueeze(-1)) / std.unsqueeze(-1)
    weight_BAQ = torch.exp(-0.5 * z_BAQ.square()) * ((step / std) / math.sqrt(2 * math.pi)).unsqueeze(-1)
    size_BAQ = u_BAQ.abs()
    r_BAQ = torch.log1p(torch.exp(-2 * size_BAQ)) - (_mean_abs(size_BAQ, 1.0) - size_BAQ)
    return _mean_abs(mean, (1 + std.square()).sqrt()) - math.log(2) + (weight_BAQ * r_BAQ).sum(-1)


def _mean_abs(mean: Tensor, std: Tensor | float) -> Tensor:
    """E |u| of a normal u, elementwise."""
    z = mean / std
    return std * math.sqrt(2 / math.pi) * torch.exp(-0.5 * z.square()) + mean * torch.erf(z / math.sqrt(2))
