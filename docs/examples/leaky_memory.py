"""Leaky memory: each unit keeps a share of what it holds, and takes the rest from the input."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from mneme.controllers import Carry, Controller, ControllerSettings
from mneme.controllers.initialisation import chrono_bias, linear


@dataclass(frozen=True, kw_only=True)
class LeakyMemorySettings(ControllerSettings):
    """What it has to choose, besides what every kind has."""

    leak: float = 2.0
    """Bias of keep, where it is not spread over the horizon (policy.controller.chrono=false)."""


class LeakyMemory(Controller):
    """h' = keep h + (1 - keep) W x, with one learned share a unit, keep = sigmoid(leak); it carries `h` [B, H]."""

    settings_class = LeakyMemorySettings

    def __init__(self, input_size: int, settings: LeakyMemorySettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        super().__init__(input_size, hidden, {"h": (hidden,)}, settings.initial_carry == "learned")
        self.write = linear(input_size, hidden, 1.0, generator)
        chrono = chrono_bias(hidden, horizon, generator)
        self.leak = nn.Parameter(chrono if settings.chrono else torch.full((hidden,), settings.leak))

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = torch.lerp(self.write(x_BD), carry["h"], torch.sigmoid(self.leak))
        return h_BH, {"h": h_BH}
