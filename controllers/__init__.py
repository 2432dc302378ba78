"""The agent's network: sequence models behind one contract, and the policy around them."""

from controllers.actions import ActionHead, Bernoulli, Categorical, Gaussian, Joint
from controllers.controller import Carry, Controller, DonatedCarry, reset_carry
from controllers.observations import Image, Observation, ObservationPart, OneHot, Vector
from controllers.policy import ACTION_MASK, PREVIOUS_ACTION, Act, Policy, PolicyOutput, PolicySpec, build_policy
from controllers.registry import CONTROLLERS, build_controller
from controllers.settings import ControllerSettings, PolicySettings
from controllers.typed import Settings, hints_of, typed
from controllers.weights import Weights

__all__ = [
    "ACTION_MASK",
    "CONTROLLERS",
    "PREVIOUS_ACTION",
    "Act",
    "ActionHead",
    "Bernoulli",
    "Carry",
    "Categorical",
    "Controller",
    "ControllerSettings",
    "DonatedCarry",
    "Gaussian",
    "Image",
    "Joint",
    "Observation",
    "ObservationPart",
    "OneHot",
    "Policy",
    "PolicyOutput",
    "PolicySettings",
    "PolicySpec",
    "Settings",
    "Vector",
    "Weights",
    "build_controller",
    "build_policy",
    "hints_of",
    "reset_carry",
    "typed",
]
