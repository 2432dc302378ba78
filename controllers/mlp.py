"""The controller without memory: what a task's memory is measured against."""

import math

from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import linear
from mneme.controllers.settings import MlpSettings


def dense(input_size: int, widths: tuple[int, ...], generator: Generator) -> nn.Sequential:
    """Linear layers, each followed by ReLU, over the last axis; no widths give the identity."""
    sizes = (input_size, *widths)
    layers = [linear(sizes[i], width, math.sqrt(2), generator) for i, width in enumerate(widths)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))


Layer = tuple[Tensor, Tensor]
"""Weight [outputs, inputs] and bias [outputs]."""


def layers_of(network: nn.Module) -> list[Layer]:
    """The linear layers of what `dense` has made; none of the identity."""
    return [(layer.weight, layer.bias) for layer in network.children() if isinstance(layer, nn.Linear)]


class MlpController(Controller):
    """One hidden layer, step by step alike; its carry is empty."""

    settings_class = MlpSettings
    step_backends = ("numba", "torch")
    cuts_gradients = True
    mixes_precision = True

    def __init__(self, input_size: int, settings: MlpSettings, horizon: int, generator: Generator) -> None:
        super().__init__(input_size, settings.hidden_size, {}, learn_initial=False)
        self.layers = dense(input_size, (settings.hidden_size,), generator)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.layers(x_BD), {}

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        return self.layers(x_TBD), {}

    def stepper(self) -> Step:
        layers = layers_of(self.layers)
        if not self.steps_compile(layers[0][0].device):
            return super().stepper()
        from mneme.controllers.scans.rows.dense import DenseLayers  # here, as numba may be missing

        step = DenseLayers(layers)
        return lambda x_BD, reset_B, carry: (step(x_BD), {})
