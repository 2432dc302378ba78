"""Memory tasks, batched in numpy. Importing this package registers them as ordinary Gymnasium ids."""

import gymnasium

from envs.counting import Counting
from envs.delayed_cue import DelayedCue
from envs.facts import TaskFacts, facts_of
from envs.guard import EnvironmentFailure, failures_in
from envs.make import make_vector_env
from envs.memory_env import MemoryVectorEnv, SingleEnv
from envs.settings import EnvSettings

__all__ = [
    "Counting",
    "DelayedCue",
    "EnvSettings",
    "EnvironmentFailure",
    "MemoryVectorEnv",
    "SingleEnv",
    "TaskFacts",
    "facts_of",
    "failures_in",
    "make_vector_env",
]

gymnasium.register(
    "mneme/DelayedCue-v0",
    entry_point="envs.delayed_cue:DelayedCueEnv",
    vector_entry_point="envs.delayed_cue:DelayedCue",
)
gymnasium.register(
    "mneme/Counting-v0",
    entry_point="envs.counting:CountingEnv",
    vector_entry_point="envs.counting:Counting",
)
