"""The block around a linear recurrence."""

import torch
import torch.nn.functional as F
from torch import Generator, nn

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.residual_block import ResidualBlock


def block(input_size: int) -> ResidualBlock:
    """Every parameter is moved off its initial value."""
    settings = ControllerSettings(kind="lru", hidden_size=6)
    built = build_controller(settings, input_size, 10, Generator().manual_seed(0))
    assert isinstance(built, ResidualBlock)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += torch.randn(parameter.shape)
    return built


def test_a_blank_observation_reaches_the_recurrence_as_zeros_whatever_was_learned() -> None:
    for input_size in (3, 6):
        built = block(input_size)
        u = built.norm(built.project(torch.zeros(2, input_size)))
        assert torch.count_nonzero(u) == 0


def test_only_an_input_of_another_size_is_projected() -> None:
    assert isinstance(block(6).project, nn.Identity)
    assert isinstance(block(5).project, nn.Linear)


def test_the_output_is_the_input_and_what_the_gates_let_through() -> None:
    built = block(6)
    x, no_reset = torch.randn(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool)
    mixed, _ = built.mixer_cell(built.norm(x[0]), built.initial_carry(4))
    value, gate = built.mix(F.gelu(mixed)).chunk(2, -1)
    y, _ = built.scan(x, no_reset, built.initial_carry(4))
    torch.testing.assert_close(y[0], x[0] + value * gate.sigmoid())
    with torch.no_grad():
        built.mix.weight[6:], built.mix.bias[6:] = 0, -100  # what is mixed may itself be hundreds
    torch.testing.assert_close(built.scan(x, no_reset, built.initial_carry(4))[0], x)
