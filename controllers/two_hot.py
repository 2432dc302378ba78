"""A value as a distribution over bins, for returns of unknown scale (Hafner et al. 2023, arXiv:2301.04104).

The bins are evenly spaced from -20 to 20 under symexp, sign(x) (exp |x| - 1): close together around 0, up to 4.9e8.

Axis letter: V bins, an odd number, with 0 in the middle.
"""

from functools import cache

import torch
from torch import Tensor

_REACH = 20.0


@cache
def bins_of(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values [V] of the bins, rising; each is exactly the negative of its mirror image. Not to be changed."""
    above = torch.linspace(0.0, _REACH, count // 2 + 1, dtype=torch.float64).expm1()
    return torch.cat([-above[1:].flip(0), above]).to(dtype).to(device)


def expectation(logits: Tensor) -> Tensor:
    """The mean [...] of the distribution over bins that logits [..., V] give.

    Each bin is first set against its mirror image: where both are equally likely, they cancel to the bit, however
    large they are.
    """
    middle = logits.shape[-1] // 2
    p = logits.softmax(-1)
    balance = p[..., middle + 1 :] - p[..., :middle].flip(-1)
    return (balance * bins_of(logits.shape[-1], p.dtype, p.device)[middle + 1 :]).sum(-1)


def two_hot_of(targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The distribution over two neighbouring bins whose mean is the target, or the outermost bin beyond the ends.

    Args:
        targets: [...].
        count: of bins.

    Returns:
        The number of the lower one of the two bins, [...], and the probability of the upper one, [...].
    """
    bins = bins_of(count, targets.dtype, targets.device)
    within = targets.contiguous().clamp(bins[0], bins[-1])
    lower = (torch.searchsorted(bins, within, right=True) - 1).clamp(0, count - 2)
    return lower, (within - bins[lower]) / (bins[lower + 1] - bins[lower])
