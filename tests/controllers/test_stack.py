"""Several layers as one: what each says, and its auxiliary loss, counts, whichever it is."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.mlp import MlpController
from mneme.controllers.stack import Stack


class Outspoken(MlpController):
    """Says its mean output, and has an auxiliary loss of it in its own measure."""

    weight = 1.0

    def signals(self, y_TBH: Tensor) -> dict[str, Tensor]:
        return {"level": y_TBH.mean(-1)}

    def auxiliary_loss(self, means_N: Mapping[str, Tensor]) -> Tensor:
        return self.weight * means_N["level"]


def test_every_layer_says_its_signals_under_its_number() -> None:
    settings = ControllerSettings(kind="pseudo_mamba", num_layers=2, hidden_size=6, backend="torch", num_slots=3)
    stack = build_controller(settings, 5, 10, Generator().manual_seed(0))
    assert isinstance(stack, Stack)
    x, reset, carry = torch.randn(7, 3, 5), torch.zeros(7, 3, dtype=torch.bool), stack.initial_carry(3)
    y, after, signals = stack.scan_with_signals(x, reset, carry)
    expected, same = stack.scan(x, reset, carry)
    assert torch.equal(y, expected)
    assert all(torch.equal(after[name], same[name]) for name in same)
    below, _, said = stack.layers[0].scan_with_signals(x, reset, stack.layers[0].initial_carry(3))
    assert signals.keys() == {"gate_0", "gate_1"}
    assert torch.equal(signals["gate_0"], said["gate"])
    assert torch.equal(
        signals["gate_1"], stack.layers[1].scan_with_signals(below, reset, stack.layers[1].initial_carry(3))[2]["gate"]
    )


def test_a_stack_has_the_auxiliary_losses_of_all_its_layers() -> None:
    settings, generator = ControllerSettings(kind="mlp", hidden_size=4), Generator().manual_seed(0)
    plain = MlpController(4, settings, 10, generator)
    loud, louder = (Outspoken(4, settings, 10, generator) for _ in range(2))
    louder.weight = 10.0
    means = {"level_0": torch.tensor([1.0, 2.0]), "level_2": torch.tensor([0.5, 0.25])}
    assert Stack([loud, plain, louder]).auxiliary_loss(means).tolist() == [6.0, 4.5]  # type: ignore[union-attr]
    inside = Stack([plain, Stack([loud, louder])])
    nested = {"level_0_1": torch.tensor([1.0]), "level_1_1": torch.tensor([2.0])}
    assert inside.auxiliary_loss(nested).tolist() == [21.0]  # type: ignore[union-attr]
    assert inside.has_auxiliary_loss
    assert not Stack([plain, plain]).has_auxiliary_loss
    assert Stack([plain, plain]).auxiliary_loss({}) is None
