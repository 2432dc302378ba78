"""Several independent action distributions as one.

Axis letters: B environments (any leading axes), A parameters of all parts, S slots of all parts.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mneme.controllers.actions.distribution import ActionDistribution

EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class Joint(ActionDistribution):
    """One action of every part; parameters, noise, masks and features are the parts' own, one after the other.

    Actions are packed along the last axis, a part with action shape () into one slot: int64 if all parts are, else
    float32. Several choices at once (MultiDiscrete) are a joint of `Categorical`s.
    """

    parts: tuple[ActionDistribution, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a joint action has no parts; give it at least one")
        for part in self.parts:
            if part.action_dtype != self.action_dtype and part.parameter_size > EXACT_IN_FLOAT32:
                raise ValueError(
                    f"the part {part} of a joint action is packed as float32, which is exact up to {EXACT_IN_FLOAT32}; "
                    f"use fewer choices, or no real-valued part"
                )

    @property
    def parameter_size(self) -> int:
        return sum(part.parameter_size for part in self.parts)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (sum(math.prod(part.action_shape) for part in self.parts),)

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.int64 if all(part.action_dtype == torch.int64 for part in self.parts) else torch.float32

    @property
    def mask_size(self) -> int:
        return sum(part.mask_size for part in self.parts)

    @property
    def feature_size(self) -> int:
        return sum(part.feature_size for part in self.parts)

    def pack(self, actions: Iterable[Tensor]) -> Tensor:
        """One action a part, each in the part's own format, as one tensor [B, S]."""
        slots = [
            (action if part.action_shape else action.unsqueeze(-1)).to(self.action_dtype)
            for part, action in zip(self.parts, actions, strict=True)
        ]
        return torch.cat(slots, -1)

    def unpack(self, action: Tensor) -> list[Tensor]:
        """The inverse of `pack`: [B, S] -> one action a part, each of its own shape and type."""
        slots = action.split([math.prod(part.action_shape) for part in self.parts], -1)
        return [
            (slot if part.action_shape else slot.squeeze(-1)).to(part.action_dtype)
            for part, slot in zip(self.parts, slots, strict=True)
        ]

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        noise = uniform.split([part.noise_size for part in self.parts], -1)
        return self.pack(part.sample(x, u) for (part, x), u in zip(self._each(parameters), noise, strict=True))

    def mode(self, parameters: Tensor) -> Tensor:
        return self.pack(part.mode(x) for part, x in self._each(parameters))

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        actions = self.unpack(action)
        return _sum(part.log_prob(x, a) for (part, x), a in zip(self._each(parameters), actions, strict=True))

    def entropy(self, parameters: Tensor) -> Tensor:
        return _sum(part.entropy(x) for part, x in self._each(parameters))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return _sum(part.kl(x, y) for (part, x), (_, y) in zip(self._each(p), self._each(q), strict=True))

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        masks = mask.split([part.mask_size for part in self.parts], -1)
        return torch.cat([part.masked(x, m) for (part, x), m in zip(self._each(parameters), masks, strict=True)], -1)

    def features(self, action: Tensor) -> Tensor:
        return torch.cat([part.features(a) for part, a in zip(self.parts, self.unpack(action), strict=True)], -1)

    def _each(self, parameters: Tensor) -> Iterator[tuple[ActionDistribution, Tensor]]:
        """Every part with its own parameters."""
        sizes = [part.parameter_size for part in self.parts]
        return zip(self.parts, parameters.split(sizes, -1), strict=True)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)
