"""What a controller is said to cost, as far as it can be counted."""

import math

from torch import Generator

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.contract import measure


def test_parameters_and_carry_are_counted_and_the_gru_beside_it_is_the_narrowest_with_as_many() -> None:
    settings = ControllerSettings(kind="lstm", hidden_size=6, num_layers=2)

    def build(input_size: int, generator: Generator) -> Controller:
        return build_controller(settings, input_size, 10, generator)

    figures = measure(build, input_size=4)
    assert figures.parameters == 4 * 6 * (4 + 6 + 2) + 4 * 6 * (6 + 6 + 2)
    assert figures.carry_bytes == 2 * (6 + 6) * 4
    h = figures.gru_hidden
    assert figures.gru_parameters == 3 * h * (4 + h + 2) >= figures.parameters
    assert 3 * (h - 1) * (4 + h - 1 + 2) < figures.parameters
    assert all(math.isfinite(figure) for figure in figures)
    assert min(figures.scan_speed, figures.scan_ratio, figures.step_speed, figures.step_ratio) > 0
