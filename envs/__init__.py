"""Memory tasks, batched in numpy. Importing this package registers them as ordinary Gymnasium ids."""

from typing import Any

import gymnasium

from mneme.envs.associative_recall import AssociativeRecall
from mneme.envs.callables import HERE, id_of
from mneme.envs.copy_memory import CopyMemory
from mneme.envs.counting import Counting
from mneme.envs.delayed_cue import DelayedCue
from mneme.envs.facts import TaskFacts, facts_of, horizon_of
from mneme.envs.guard import (
    LARGEST_OBSERVED,
    EnvironmentFailure,
    EnvironmentMisuse,
    failures_in,
    one_line,
    reset_failures_in,
)
from mneme.envs.make import make_vector_env, resumable_form
from mneme.envs.masks import flat_mask
from mneme.envs.memory_chain import MemoryChain
from mneme.envs.memory_env import MemoryVectorEnv, SingleEnv
from mneme.envs.place import Place
from mneme.envs.plain import Misfit
from mneme.envs.registered import Registered, check_sendable, register_missing, registered_here
from mneme.envs.repeat_previous import RepeatPrevious
from mneme.envs.resumable import Resumable
from mneme.envs.settings import EnvSettings
from mneme.envs.tmaze import TMaze
from mneme.envs.vector_guard import adrift_in

__all__ = [
    "HERE",
    "LARGEST_OBSERVED",
    "AssociativeRecall",
    "CopyMemory",
    "Counting",
    "DelayedCue",
    "EnvSettings",
    "EnvironmentFailure",
    "EnvironmentMisuse",
    "MemoryChain",
    "MemoryVectorEnv",
    "Misfit",
    "Place",
    "Registered",
    "RepeatPrevious",
    "Resumable",
    "SingleEnv",
    "TMaze",
    "TaskFacts",
    "adrift_in",
    "check_sendable",
    "facts_of",
    "failures_in",
    "flat_mask",
    "horizon_of",
    "id_of",
    "make_vector_env",
    "one_line",
    "register_missing",
    "registered_here",
    "reset_failures_in",
    "resumable_form",
]


def _register(name: str, vector_class: type[MemoryVectorEnv], **kwargs: Any) -> None:
    vector_form = f"{vector_class.__module__}:{vector_class.__name__}"
    gymnasium.register(
        f"mneme/{name}-v0", entry_point=f"{vector_form}Env", vector_entry_point=vector_form, kwargs=kwargs
    )


_register("DelayedCue", DelayedCue)
_register("CopyMemory", CopyMemory)
_register("AssociativeRecall", AssociativeRecall)
_register("TMaze", TMaze)
_register("RepeatPrevious", RepeatPrevious)
_register("RepeatPreviousEasy", RepeatPrevious, k=4, decks=1)
_register("RepeatPreviousMedium", RepeatPrevious, k=32, decks=2)
_register("RepeatPreviousHard", RepeatPrevious, k=64, decks=3)
_register("MemoryLen", MemoryChain, bits=1)
_register("MemorySize", MemoryChain, length=2)
_register("Counting", Counting)
