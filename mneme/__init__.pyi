"""Reinforcement learning for agents that must remember."""

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
