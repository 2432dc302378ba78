"""Mamba below, a GRU above: what the selective state space remembers, through a nonlinear state."""

from torch import Generator

from mneme.controllers.gru import GruController
from mneme.controllers.mamba import MambaController
from mneme.controllers.settings import ControllerSettings
from mneme.controllers.stack import Stack


class MambaGruController(Stack):
    """It carries `state_0` and `window_0` as Mamba does, and `h_1` as the GRU does; the settings are Mamba's."""

    def __init__(
        self,
        input_size: int,
        settings: ControllerSettings,
        horizon: int,
        generator: Generator,
        *,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
    ) -> None:
        mamba = MambaController(
            input_size,
            settings,
            horizon,
            generator,
            d_state=d_state,
            expand=expand,
            d_conv=d_conv,
        )
        gru = GruController(mamba.output_size, settings, horizon, generator)
        for layer in (mamba, gru):
            layer.backend = settings.backend
        super().__init__((mamba, gru))
