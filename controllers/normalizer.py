"""Running mean and variance of observations.

Axis letters: N new observations, D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

LIMIT = 10.0  # no normalised number is larger
EPSILON = 1e-8


class Normalizer(nn.Module):
    """Shift and scale to mean 0 and variance 1, clipped to ±10; before the first update only clipped.

    The statistics are buffers: they travel with the weights, and no gradient trains them. Where the device has no
    float64, as Apple's GPUs, they stay on the CPU.
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
        scale = (self.variance + EPSILON).rsqrt().to(x.dtype).to(x.device)
        return ((x - self.mean.to(x.dtype).to(x.device)) * scale).clamp(-LIMIT, LIMIT)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalizer":
        """Leave the statistics where they are if `fn` moves to a device without float64."""
        return self if fn(torch.empty(0)).device.type == "mps" else super()._apply(fn, recurse)

    @torch.no_grad()
    def update(self, x_ND: Tensor, stacked: Callable[[Tensor], Tensor] = lambda x: x[None]) -> None:
        """Count [N, D] more observations; none change nothing.

        Args:
            x_ND: perhaps one learner's part of them.
            stacked: the numbers of all learners, [learners, numbers], from those of this one.
        """
        x_ND = x_ND.to(self.mean.device)
        none = x_ND.new_zeros(1 + 2 * len(self.mean), dtype=torch.float64)
        for moments in stacked(_moments(x_ND.double()) if len(x_ND) else none):
            if moments[0]:
                self._absorb(moments[0], *moments[1:].chunk(2))

    def _absorb(self, count: Tensor, mean_D: Tensor, variance_D: Tensor) -> None:
        """Count so many more of this mean and variance (Chan et al. 1979, the pairwise formula)."""
        total = self.count + count
        delta_D = mean_D - self.mean
        squares_D = self.variance * self.count + variance_D * count + delta_D.square() * self.count * count / total
        self.mean += delta_D * count / total
        self.variance.copy_(squares_D / total)
        self.count.copy_(total)


def _moments(x_ND: Tensor) -> Tensor:
    """Count, mean and variance of [N, D] observations, [1 + 2 D]."""
    return torch.cat([x_ND.new_tensor([len(x_ND)]), x_ND.mean(0), x_ND.var(0, correction=0)])
