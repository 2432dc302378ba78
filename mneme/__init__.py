"""Reinforcement learning for agents that must remember.

`run = mneme.train("delayed_cue", controller="gru")`, `agent = mneme.load(run.folder)`, `mneme.evaluate(agent)`,
`mneme.resume(run)`. What is offered here is loaded when it is first used, as torch and its friends take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mneme.agent import Agent, AgentCarry, Session
    from mneme.api import evaluate, export, load, resume, sweep, train
    from mneme.callbacks import Callback, Look, Outcome, Progress, RunStart
    from mneme.configuration.config import Config
    from mneme.controllers import Carry, Controller, ControllerSettings
    from mneme.distributed.config import ConfigError
    from mneme.distributed.runners import ServiceError
    from mneme.envs import EnvironmentFailure
    from mneme.experiments.sweep.running import Sweep
    from mneme.reporting.boards import TensorBoard, Wandb
    from mneme.rollout_workers import Evaluation, EvaluationError
    from mneme.storage.checkpoint import CheckpointError
    from mneme.training import Run

__all__ = [
    "Agent",
    "AgentCarry",
    "Callback",
    "Carry",
    "CheckpointError",
    "Config",
    "ConfigError",
    "Controller",
    "ControllerSettings",
    "EnvironmentFailure",
    "Evaluation",
    "EvaluationError",
    "Look",
    "Outcome",
    "Progress",
    "Run",
    "RunStart",
    "ServiceError",
    "Session",
    "Sweep",
    "TensorBoard",
    "Wandb",
    "evaluate",
    "export",
    "load",
    "resume",
    "sweep",
    "train",
]

_MODULES = {
    "agent": ("Agent", "AgentCarry", "Session"),
    "api": ("evaluate", "export", "load", "resume", "sweep", "train"),
    "callbacks": ("Callback", "Look", "Outcome", "Progress", "RunStart"),
    "configuration.config": ("Config",),
    "controllers": ("Carry", "Controller", "ControllerSettings"),
    "distributed.config": ("ConfigError",),
    "distributed.runners": ("ServiceError",),
    "envs": ("EnvironmentFailure",),
    "reporting.boards": ("TensorBoard", "Wandb"),
    "rollout_workers": ("Evaluation", "EvaluationError"),
    "storage.checkpoint": ("CheckpointError",),
    "experiments.sweep.running": ("Sweep",),
    "training": ("Run",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mneme' has no attribute {name!r}")
    value = getattr(import_module(f"mneme.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
