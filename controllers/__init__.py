"""The agent's network: sequence models behind one contract, and the policy around them."""

from controllers.actions import ActionHead, Categorical
from controllers.controller import Carry, Controller, reset_carry
from controllers.policy import Act, Policy, PolicyOutput, PolicySpec, build_policy
from controllers.registry import CONTROLLERS, build_controller
from controllers.settings import ControllerSettings, PolicySettings
from controllers.weights import Weights

__all__ = [
    "CONTROLLERS",
    "Act",
    "ActionHead",
    "Carry",
    "Categorical",
    "Controller",
    "ControllerSettings",
    "Policy",
    "PolicyOutput",
    "PolicySettings",
    "PolicySpec",
    "Weights",
    "build_controller",
    "build_policy",
    "reset_carry",
]
