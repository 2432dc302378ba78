"""Every controller by the name the settings use."""

import importlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from operator import attrgetter

from torch import Generator

from mneme.controllers.controller import Controller
from mneme.controllers.given import given
from mneme.controllers.gru import GruController
from mneme.controllers.lru import LruController
from mneme.controllers.lstm import LstmController
from mneme.controllers.mamba import MambaController
from mneme.controllers.mamba2 import Mamba2Controller
from mneme.controllers.mamba_gru import MambaGruController
from mneme.controllers.mingru import MinGruController
from mneme.controllers.mlp import MlpController
from mneme.controllers.nbrc import NbrcController
from mneme.controllers.pseudo_mamba import PseudoMambaController
from mneme.controllers.scans.backends import REFERENCE
from mneme.controllers.settings import ControllerSettings, OwnSettings
from mneme.controllers.stack import Stack
from mneme.controllers.transformer import TransformerController
from mneme.controllers.typed import hints_of, typed

CONTROLLERS: Mapping[str, type[Controller]] = {
    "mlp": MlpController,
    "gru": GruController,
    "lstm": LstmController,
    "nbrc": NbrcController,
    "mamba": MambaController,
    "mamba_gru": MambaGruController,
    "mamba2": Mamba2Controller,
    "pseudo_mamba": PseudoMambaController,
    "lru": LruController,
    "mingru": MinGruController,
    "transformer": TransformerController,
}
"""Each is built from (input_size, settings, horizon, generator), where settings are of its `settings_class`."""


def build_controller(settings: ControllerSettings, input_size: int, horizon: int, generator: Generator) -> Controller:
    """The controller that `settings.kind` names, freshly initialised from `generator`.

    `horizon`, in steps, is the task's; `settings.expected_horizon` overrides it.

    Raises:
        ValueError: it cannot be built; says why.
    """
    kind, horizon = settings.kind, settings.expected_horizon or horizon
    controller = _own(kind) if isinstance(settings, OwnSettings) else CONTROLLERS[kind]
    chosen = _own_settings(settings, controller) if isinstance(settings, OwnSettings) else settings
    layers: list[Controller] = []
    for _ in range(settings.num_layers):
        size = layers[-1].output_size if layers else input_size
        layers.append(_built(controller, size, chosen, horizon, generator))
        layers[-1].backend = settings.backend
    offered = ("auto", *layers[0].backends, REFERENCE)
    if settings.backend not in offered:
        raise settings.fault("backend", f"{kind} does not have that; choose one of {', '.join(offered)}")
    return layers[0] if len(layers) == 1 else Stack(layers)


def _own(kind: str) -> type[Controller]:
    module, _, name = kind.partition(":")
    key = ControllerSettings.key("kind")
    try:
        controller = given(kind) or attrgetter(name)(importlib.import_module(module))
    except Exception as error:
        raise ValueError(
            f"{key} is {kind!r}, which cannot be imported: {error}; "
            f"modules are looked for in the present folder, and where PYTHONPATH says"
        ) from error
    if not (isinstance(controller, type) and issubclass(controller, Controller)):
        raise ValueError(f"{key} is {kind!r}, which is not a subclass of controllers.Controller")
    own: type[Controller] = controller
    return own


def _own_settings(settings: OwnSettings, controller: type[Controller]) -> ControllerSettings:
    """The settings that a controller of the user's own declares, filled from `kwargs`."""
    declared = controller.settings_class
    if declared is ControllerSettings:
        declared = OwnSettings
    hints = hints_of(declared)
    accepted = hints.keys() - hints_of(OwnSettings).keys()
    kwargs = {}
    for name, value in settings.kwargs.items():
        key = settings.key(f"kwargs.{name}")
        if name not in accepted:
            raise ValueError(
                f"{key} is {value!r}, but {settings.kind} has no such setting; "
                f"it accepts {', '.join(sorted(accepted)) or 'none'}"
            )
        kwargs[name] = typed(key, deepcopy(value), hints[name])
    return settings.of_kind(declared, **kwargs)


def _built(
    controller: type[Controller], size: int, settings: ControllerSettings, horizon: int, generator: Generator
) -> Controller:
    """One layer; what a controller of one's own may raise becomes a sentence."""
    build: Callable[..., Controller] = controller
    try:
        layer = build(size, settings, horizon, generator)
        layer.initial()
    except ValueError:
        raise
    except Exception as error:
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{settings.key('kind')} is {settings.kind!r}, which cannot be built: {sentence}") from error
    return layer
