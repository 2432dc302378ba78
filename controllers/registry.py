"""Every controller by the name the settings use."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

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
from mneme.controllers.pseudo_mamba import PseudoMambaController
from mneme.controllers.scans.backends import REFERENCE
from mneme.controllers.settings import ControllerSettings
from mneme.controllers.stack import Stack
from mneme.controllers.transformer import TransformerController
from mneme.controllers.typed import typed

ControllerFactory = Callable[..., Controller]
"""Builds one layer from (input_size, settings, horizon, generator); what only this kind has to choose are keyword-only
parameters with defaults."""

CONTROLLERS: Mapping[str, ControllerFactory] = {
    "mlp": MlpController,
    "gru": GruController,
    "lstm": LstmController,
    "mamba": MambaController,
    "mamba_gru": MambaGruController,
    "mamba2": Mamba2Controller,
    "pseudo_mamba": PseudoMambaController,
    "lru": LruController,
    "mingru": MinGruController,
    "transformer": TransformerController,
}


def build_controller(settings: ControllerSettings, input_size: int, horizon: int, generator: Generator) -> Controller:
    """The controller that `settings.kind` names, freshly initialised from `generator`.

    `horizon`, in steps, is the task's; `settings.expected_horizon` overrides it.

    Raises:
        ValueError: no controller has that name, or it does not accept one of `settings.kwargs`.
    """
    factory = _own(settings.kind) if ":" in settings.kind else CONTROLLERS.get(settings.kind)
    if factory is None:
        nearest = f" (nearest: {near!r})" if (near := _nearest(settings.kind)) else ""
        raise ValueError(
            f"policy.controller.kind is {settings.kind!r}; choose one of {', '.join(CONTROLLERS)}{nearest}, "
            f"or your own as module:Class"
        )
    kwargs = _kwargs(settings, factory)
    horizon = settings.expected_horizon or horizon
    layers: list[Controller] = []
    for _ in range(settings.num_layers):
        size = layers[-1].output_size if layers else input_size
        layers.append(_built(factory, size, settings, horizon, generator, kwargs))
        layers[-1].backend = settings.backend
    offered = ("auto", *layers[0].backends, REFERENCE)
    if settings.backend not in offered:
        raise ValueError(
            f"policy.controller.backend is {settings.backend!r}, which {settings.kind} does not have; "
            f"choose one of {', '.join(offered)}"
        )
    return layers[0] if len(layers) == 1 else Stack(layers)


def _nearest(kind: str) -> str | None:
    """The kind that another spelling may mean, capitals and punctuation aside."""
    plain = {name.replace("_", ""): name for name in CONTROLLERS}
    letters = "".join(letter for letter in kind.lower() if letter.isalnum())
    near = get_close_matches(letters, plain, n=1)
    return plain[near[0]] if near else None


def _own(kind: str) -> ControllerFactory:
    module, _, name = kind.partition(":")
    try:
        factory = given(kind) or getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ValueError(
            f"policy.controller.kind is {kind!r}, which cannot be imported: {error}; "
            f"modules are looked for in the present folder, and where PYTHONPATH says"
        ) from error
    if not (isinstance(factory, type) and issubclass(factory, Controller)):
        raise ValueError(f"policy.controller.kind is {kind!r}, which is not a subclass of controllers.Controller")
    own: ControllerFactory = factory
    return own


def _built(
    factory: ControllerFactory,
    size: int,
    settings: ControllerSettings,
    horizon: int,
    generator: Generator,
    kwargs: Mapping[str, Any],
) -> Controller:
    """One layer; what a factory of one's own may raise becomes a sentence."""
    try:
        layer = factory(size, settings, horizon, generator, **deepcopy(dict(kwargs)))
        layer.initial()
    except ValueError:
        raise
    except Exception as error:
        sentence = " ".join(str(error).split())
        raise ValueError(
            f"policy.controller.kind is {settings.kind!r}, which cannot be built with kwargs {kwargs}: "
            f"{type(error).__name__}: {sentence}"
        ) from error
    return layer


def _kwargs(settings: ControllerSettings, factory: ControllerFactory) -> dict[str, Any]:
    """What the settings give this kind, of the types that its parameters have."""
    try:
        signature = inspect.signature(factory, eval_str=True)  # annotations may be postponed
    except Exception:  # one names what only type checkers import, or cannot be read
        signature = inspect.signature(factory)
    accepted = {p.name: p.annotation for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    kwargs = {}
    for name, value in settings.kwargs.items():
        if name not in accepted:
            raise ValueError(
                f"policy.controller.kwargs.{name} is {value!r}, but {settings.kind} has no such setting; "
                f"it accepts {', '.join(accepted) or 'none'}"
            )
        kwargs[name] = typed(f"policy.controller.kwargs.{name}", value, accepted[name])
    return kwargs
