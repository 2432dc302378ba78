"""Mamba below, a GRU above: what the selective state space remembers, through a nonlinear state."""

from torch import Generator

from mneme.controllers.gru import GruController
from mneme.controllers.mamba import MambaController
from mneme.controllers.settings import GruSettings, MambaGruSettings
from mneme.controllers.stack import Stack


class MambaGruController(Stack):
    """It carries `state_0` and `window_0` as Mamba does, and `h_1` as the GRU does."""

    settings_class = MambaGruSettings

    def __init__(self, input_size: int, settings: MambaGruSettings, horizon: int, generator: Generator) -> None:
        mamba = MambaController(input_size, settings, horizon, generator)
        gru = GruController(mamba.output_size, settings.of_kind(GruSettings), horizon, generator)
        for layer in (mamba, gru):
            layer.backend = settings.backend
        super().__init__((mamba, gru))
