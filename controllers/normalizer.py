"""Running mean and variance of observations.

Axis letters: N new observations, D features.
"""

import torch
from torch import Tensor, nn

LIMIT = 10.0  # no normalised number is larger
EPSILON = 1e-8


class Normalizer(nn.Module):
    """Shift and scale to mean 0 and variance 1, clipped to ±10; before the first update only clipped.

    The statistics are buffers: they travel with the weights, and no gradient trains them.
    """

    count: Tensor  # float64 [], observations so far
    mean: Tensor  # float64 [D]
    variance: Tensor  # float64 [D], over all observations so far

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.variance + EPSILON).rsqrt().to(x.dtype)
        return ((x - self.mean.to(x.dtype)) * scale).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def update(self, x_ND: Tensor) -> None:
        """Count [N, D] more observations (Chan et al. 1979, the pairwise formula); none change nothing."""
        if not len(x_ND):
            return
        x_ND = x_ND.double()
        total = self.count + len(x_ND)
        delta_D = x_ND.mean(0) - self.mean
        squares_D = (
            self.variance * self.count
            + x_ND.var(0, correction=0) * len(x_ND)
            + delta_D.square() * self.count * len(x_ND) / total
        )
        self.mean += delta_D * len(x_ND) / total
        self.variance.copy_(squares_D / total)
        self.count.copy_(total)
