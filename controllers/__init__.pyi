"""The agent's network: sequence models behind one contract, and the policy around them."""

from mneme.controllers.acting import Actor
from mneme.controllers.actions import ActionDistribution, Bernoulli, Categorical, Gaussian, Joint
from mneme.controllers.controller import Carry, Controller, reset_carry
from mneme.controllers.observations import Image, Observation, ObservationPart, OneHot, Vector
from mneme.controllers.policy import ACTION_MASK, PREVIOUS_ACTION, Act, Policy, PolicyOutput, PolicySpec, build_policy
from mneme.controllers.registry import CONTROLLERS, build_controller
from mneme.controllers.settings import (
    KINDS,
    VALUE_BINS,
    ControllerSettings,
    GruSettings,
    LruSettings,
    LstmSettings,
    Mamba2Settings,
    MambaGruSettings,
    MambaSettings,
    MinGruSettings,
    MlpSettings,
    NbrcSettings,
    OwnSettings,
    PolicySettings,
    PseudoMambaSettings,
    TransformerSettings,
    settings_class,
)
from mneme.controllers.traces import Elementwise, Run, Traces
from mneme.controllers.two_hot import two_hot_of
from mneme.controllers.typed import Settings, hints_of
from mneme.controllers.weights import Weights

__all__ = [
    "ACTION_MASK",
    "CONTROLLERS",
    "KINDS",
    "PREVIOUS_ACTION",
    "VALUE_BINS",
    "Act",
    "ActionDistribution",
    "Actor",
    "Bernoulli",
    "Carry",
    "Categorical",
    "Controller",
    "ControllerSettings",
    "Elementwise",
    "Gaussian",
    "GruSettings",
    "Image",
    "Joint",
    "LruSettings",
    "LstmSettings",
    "Mamba2Settings",
    "MambaGruSettings",
    "MambaSettings",
    "MinGruSettings",
    "MlpSettings",
    "NbrcSettings",
    "Observation",
    "ObservationPart",
    "OneHot",
    "OwnSettings",
    "Policy",
    "PolicyOutput",
    "PolicySettings",
    "PolicySpec",
    "PseudoMambaSettings",
    "Run",
    "Settings",
    "Traces",
    "TransformerSettings",
    "Vector",
    "Weights",
    "build_controller",
    "build_policy",
    "hints_of",
    "reset_carry",
    "settings_class",
    "two_hot_of",
]
