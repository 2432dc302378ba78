"""Every controller by the name the settings use."""

from difflib import get_close_matches
from typing import Protocol

from torch import Generator

from controllers.controller import Controller
from controllers.gru import GruController
from controllers.lstm import LstmController
from controllers.mlp import MlpController
from controllers.settings import ControllerSettings


class ControllerFactory(Protocol):
    def __call__(
        self, input_size: int, settings: ControllerSettings, horizon: int, generator: Generator
    ) -> Controller: ...


CONTROLLERS: dict[str, ControllerFactory] = {
    "mlp": MlpController,
    "gru": GruController,
    "lstm": LstmController,
}


def build_controller(settings: ControllerSettings, input_size: int, horizon: int, generator: Generator) -> Controller:
    """The controller that `settings.kind` names, freshly initialised from `generator`.

    `horizon`, in steps, is the task's; `settings.expected_horizon` overrides it.

    Raises:
        ValueError: no controller has that name.
    """
    if settings.kind not in CONTROLLERS:
        near = get_close_matches(settings.kind, CONTROLLERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"controller.kind is {settings.kind!r}; choose one of {', '.join(CONTROLLERS)} (nearest: {near!r})"
        )
    horizon = settings.expected_horizon or horizon
    return CONTROLLERS[settings.kind](input_size, settings, horizon, generator)
