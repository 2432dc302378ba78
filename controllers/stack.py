"""Several layers of sequence models, each reading the one below."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.traces import Elementwise, Run

_Run = Callable[[Controller, Tensor, Carry], tuple[Tensor, Carry]]


class Stack(Controller):
    """It carries what its layers carry and says what they say, each name with the layer's number behind it.

    Args:
        layers: from the bottom up; each takes what the one below gives.
    """

    cuts_gradients = True
    mixes_precision = True

    def __init__(self, layers: Sequence[Controller]) -> None:
        super().__init__(layers[0].input_size, layers[-1].output_size, {}, learn_initial=False)
        self.layers = nn.ModuleList(layers)
        self.backend, self.backends = layers[0].backend, layers[0].backends
        self._names = [{name: f"{name}_{i}" for name in layer.initial()} for i, layer in enumerate(layers)]

    def backend_on(self, device: torch.device) -> str:
        """The lowest layer's."""
        return self._each()[0].backend_on(device)

    def steps_compile(self, device: torch.device) -> bool:
        """True if the lowest layer's does."""
        return self._each()[0].steps_compile(device)

    def initial(self) -> Carry:
        values = [layer.initial() for layer in self._each()]
        return {names[name]: value[name] for names, value in zip(self._names, values, strict=True) for name in names}

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self._through(x_BD, carry, lambda layer, x, c: layer.cell(x, c))

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        return self._through(x_TBD, carry, lambda layer, x, c: layer.run(x, reset_TB, c, cut_TB))

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self._through(x_BD, carry, lambda layer, x, c: layer.fast_step(x, c))

    def stepper(self) -> Step:
        steps = {layer: layer.stepper() for layer in self._each()}
        return lambda x_BD, reset_B, carry: self._through(x_BD, carry, lambda layer, x, c: steps[layer](x, reset_B, c))

    def run_with_signals(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry, dict[str, Tensor]]:
        said: list[dict[str, Tensor]] = []

        def run(layer: Controller, x: Tensor, own: Carry) -> tuple[Tensor, Carry]:
            y, after, signals = layer.run_with_signals(x, reset_TB, own, cut_TB)
            said.append(signals)
            return y, after

        y_TBH, carry = self._through(x_TBD, carry, run)
        return y_TBH, carry, {f"{name}_{i}": signal for i, own in enumerate(said) for name, signal in own.items()}

    def auxiliary_loss(self, means_B: Mapping[str, Tensor]) -> Tensor | None:
        """The sum of what the layers add."""
        total: Tensor | None = None
        for i, layer in enumerate(self._each()):
            own = {name.removesuffix(f"_{i}"): mean for name, mean in means_B.items() if name.endswith(f"_{i}")}
            term = layer.auxiliary_loss(own)
            total = term if total is None else total if term is None else total + term
        return total

    @property
    def has_auxiliary_loss(self) -> bool:
        return any(layer.has_auxiliary_loss for layer in self._each())

    def elementwise(self) -> dict[str, Elementwise]:
        """Those of the layers, if all have them: each layer's traces take its inputs as they are."""
        own = [layer.elementwise() for layer in self._each()]
        every = [
            {names[name]: cell for name, cell in cells.items()} for names, cells in zip(self._names, own, strict=True)
        ]
        return {name: cell for cells in every for name, cell in cells.items()} if all(own) else {}

    def elementwise_runs(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        for layer, names in zip(self._each(), self._names, strict=True):
            own = {name: carry[stacked] for name, stacked in names.items()}
            runs |= {names[name]: run for name, run in layer.elementwise_runs(x_TBD, reset_TB, own).items()}
            if layer is not self.layers[-1]:  # whose outputs nothing here reads
                x_TBD, _ = layer.run(x_TBD, reset_TB, own)
        return runs

    def _each(self) -> list[Controller]:
        return list(self.layers)  # type: ignore[arg-type]

    def _through(self, x: Tensor, carry: Carry, run: _Run) -> tuple[Tensor, Carry]:
        after: Carry = {}
        for layer, names in zip(self._each(), self._names, strict=True):
            x, own = run(layer, x, {name: carry[stacked] for name, stacked in names.items()})
            after |= {names[name]: value for name, value in own.items()}
        return x, after
