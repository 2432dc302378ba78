"""From what the environment shows to the numbers that the network reads.

Axis letters: T time, B environments, F features of one part.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from mneme.controllers.initialisation import convolution, linear
from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.normalizer import Normalizer
from mneme.controllers.settings import PolicySettings

Observation = dict[str, Tensor]
"""Part name to tensor: [T, B, ...] for a scan, [B, ...] for one step."""

NATURE_SIZE = 36  # the least height and width that Mnih et al.'s three convolutions can reduce


@dataclass(frozen=True)
class Vector:
    """Numbers as they are."""

    size: int
    """The number of values."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the size of a vector observation is {self.size}; it must be at least 1")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)


@dataclass(frozen=True)
class OneHot:
    """Categories, each numbered from 0; the network reads one flag a category."""

    counts: tuple[int, ...]
    """The number of categories of each value."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int64,)

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"the counts of a categorical observation are {self.counts}; each must be at least 1")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.counts),)


@dataclass(frozen=True)
class Image:
    """A picture or a grid, read by convolutions."""

    shape: tuple[int, int, int]
    """As it is observed: channels last or first."""

    channels_last: bool
    """True if the shape is (height, width, channels), false if it is (channels, height, width)."""

    scale: float
    """The factor by which every number is multiplied: 1/255 for bytes."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.uint8, torch.float32)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"the shape of an image observation is {self.shape}; it must be three sizes of at least 1")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"the scale of an image observation is {self.scale}; it must be a number above 0")


ObservationPart = Vector | OneHot | Image


class OneHotEncoder(nn.Module):
    """[..., len(counts)] category numbers to [..., sum(counts)] flags, all by one comparison."""

    place: Tensor
    category: Tensor
    flag: Tensor

    def __init__(self, part: OneHot) -> None:
        super().__init__()
        counts = torch.tensor(part.counts)
        place = torch.arange(len(counts)).repeat_interleave(counts)
        category = torch.cat([torch.arange(count) for count in part.counts])
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("category", category, persistent=False)
        self.register_buffer("flag", torch.ones(()), persistent=False)  # of the type that flags have

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., self.place] == self.category).to(self.flag.dtype)


class ImageEncoder(nn.Module):
    """Three convolutions, then a linear layer, LayerNorm and ReLU. Frames are channels.

    The convolutions are those of Mnih et al. 2015 from 36 x 36 pixels on; smaller ones are halved twice.
    """

    def __init__(self, part: Image, features: int, generator: Generator, frames: int) -> None:
        super().__init__()
        self.part = part
        height, width, channels = part.shape if part.channels_last else (*part.shape[1:], part.shape[0])
        channels *= frames
        nature = min(height, width) >= NATURE_SIZE
        # (filters, kernel, stride, padding) of each layer
        layers = [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)] if nature else [(32, 3, 1, 1), *2 * [(64, 3, 2, 1)]]
        stack: list[nn.Module] = []
        for filters, kernel, stride, padding in layers:
            stack += [convolution(channels, filters, kernel, stride, padding, generator), nn.ReLU()]
            channels = filters
            height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
        flat = channels * height * width
        dense = linear(flat, features, math.sqrt(2), generator)
        self.layers = nn.Sequential(*stack, nn.Flatten(), dense, LayerNorm(features), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, *shape], or of stacked frames [T, B, N, *shape] -> [T, B, features]."""
        image = x.movedim(-1, -3) if self.part.channels_last else x
        image = image.flatten(2, -3).flatten(0, 1)
        return self.layers(image.float() * self.part.scale).unflatten(0, x.shape[:2])


class ObservationEncoder(nn.Module):
    """Every part by itself: vectors as they are or normalised, categories one-hot, images by convolutions; of stacked
    observations every frame."""

    def __init__(
        self, parts: Mapping[str, ObservationPart], settings: PolicySettings, generator: Generator, frames: int = 1
    ) -> None:
        super().__init__()
        encoders: list[nn.Module] = []
        self.output_size = 0
        for part in parts.values():
            if isinstance(part, Image):
                encoders.append(ImageEncoder(part, settings.image_features, generator, frames))
                self.output_size += settings.image_features
            elif isinstance(part, OneHot):
                encoders.append(OneHotEncoder(part))
                self.output_size += sum(part.counts) * frames
            else:
                encoders.append(Normalizer(part.size) if settings.normalize_observations else nn.Identity())
                self.output_size += part.size * frames
        self.encoders = nn.ModuleList(encoders)
        self._named = tuple(zip(parts, encoders, strict=True))  # on the step path a tuple is quicker than the list

    def forward(self, observations: Observation) -> list[Tensor]:
        """[T, B, ...] a name, or of stacked frames [T, B, N, ...] -> [T, B, F] a part, in the order of the
        specification."""
        return [encode(observations[name]).flatten(2) for name, encode in self._named]

    def lacks_statistics(self) -> bool:
        """True if there is a normaliser that has no statistics yet."""
        return any(isinstance(encoder, Normalizer) and not encoder.count for _, encoder in self._named)

    def update_statistics(
        self, observations: Observation, valid: Tensor, stacked: Callable[[Tensor], Tensor] = lambda x: x[None]
    ) -> None:
        """Count the observations where `valid` is true into the normalisers, if there are any."""
        for name, encoder in self._named:
            if isinstance(encoder, Normalizer):
                encoder.update(observations[name][valid], stacked)
