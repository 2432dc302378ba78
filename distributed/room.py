"""Checks that what a run needs fits into memory, before anything of that size is made."""

import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from mneme.controllers import OneHot, Policy, PolicySpec
from mneme.distributed.config import ServiceConfig
from mneme.learner import LearnerSettings
from mneme.learner.memory import UpdateMemory, update_memory
from mneme.learner.shared_memory import container_limit

_OURS = 0.8  # of a device's memory, that an update may take
_WEIGHT = 4 * 4  # bytes: a weight, its gradient, and the optimiser's two moments
_CATEGORY = 8 + 1  # bytes for a category and step: the number it is compared with, and the flag
_PARAMETER = 4 * 4  # bytes for a parameter of an action and step: itself, as a logarithm, bounded, and as a probability


def check_room(config: ServiceConfig, spec: PolicySpec, length: int, available: int) -> None:
    """Refuse categories and numbers that a minibatch of `length` steps and the weights beside them have no room for.

    It asks for less than is needed, so what passes may still be too much. The batch counts where learning runs on this
    machine.

    Args:
        config: the run's.
        spec: what the network reads and gives.
        length: steps in a sequence.
        available: bytes of memory.

    Raises:
        ValueError: one sentence that names the part, its size and the remedy.
    """
    steps = -(-config.rollout.num_envs // config.learner.num_minibatches) * config.learner.plan(length).window
    for what, width, units, nbytes in _widths(config, spec):
        weights, batch = _WEIGHT * width * units, nbytes * width * steps
        needed = weights + batch if config.service.cluster() is None else weights
        if needed > available:
            raise ValueError(
                f"{what} needs {needed / 2**30:,.0f} GiB and more for {width:,} numbers, their weights and a minibatch "
                f"of {steps:,} steps, and this machine has {available / 2**30:,.0f} GiB; wrap the environment so that "
                f"it has fewer, or raise learner.num_minibatches"
            )


def _widths(config: ServiceConfig, spec: PolicySpec) -> Iterator[tuple[str, int, int, int]]:
    """For each categorical part of the observation, and for the action: its name, its size in numbers, the units joined
    to each number, and the bytes of one number at one step."""
    hidden = config.policy.controller.hidden_size
    for name, part in spec.observations.items():
        if isinstance(part, OneHot):
            units = (*config.policy.encoder, hidden)[0]
            yield f"the observation's part {name!r}", sum(part.counts), units, _CATEGORY
    yield "the action", spec.actions.parameter_size, hidden, _PARAMETER


def check_update(config: ServiceConfig, policy: Policy, length: int, fragment_bytes: int, available: int) -> None:
    """Refuse an update that by an estimate does not fit.

    Args:
        config: the run's, complete.
        policy: what is trained, on the device on which it is.
        length: steps in a sequence.
        fragment_bytes: of a worker's fragment.
        available: bytes of that device's memory.

    Raises:
        ValueError: one sentence with the estimate and the setting that helps.
    """
    rollout, threads = config.rollout, config.learner.num_threads or 1
    on_cpu = next(policy.parameters()).device.type == "cpu"
    shares = 1 if on_cpu else config.learner.replicas  # replicas share the memory of a CPU's machine

    def needs(settings: LearnerSettings) -> UpdateMemory:
        return max((of_stage(stage) for stage in settings.stages()), key=lambda memory: memory.total)

    def of_stage(settings: LearnerSettings) -> UpdateMemory:
        return update_memory(
            policy, settings, length=length, sequences=-(-rollout.num_envs // shares),
            batch_bytes=rollout.num_workers * fragment_bytes // shares,
            threads=threads, copies=config.learner.replicas if on_cpu else 1,
        )  # fmt: skip

    available = int(_OURS * available)
    need = needs(config.learner)
    if need.total <= available:
        return
    remedies = ((words, needs(settings).total) for words, settings in _lighter(config.learner, rollout.num_envs))
    fitting = ((words, total) for words, total in remedies if total <= available)
    words, total = next(fitting, ("lower rollout.num_envs or rollout.unroll_length", None))
    then = "" if total is None else f", which needs about {_size(total)}"
    raise ValueError(
        f"an update needs about {_size(need.total)}: {_size(need.activations)} of activations, {_size(need.batch)} of "
        f"experience and {_size(need.weights)} of weights and what goes with them, and there is {_size(available)}, "
        f"with a fifth left for all else; {words}{then}"
    )


def _lighter(s: LearnerSettings, sequences: int) -> Iterator[tuple[str, LearnerSettings]]:
    """Settings under which the same update needs less memory, those first that cost least."""
    whole = -(-sequences // s.num_minibatches)
    parts = [2**i for i in range(1, max(1, whole.bit_length())) if 2**i > s.gradient_accumulation]
    spared = s.carry_source != "fresh" or s.activation_checkpointing
    for n in parts:
        yield f"set learner.gradient_accumulation={n}", replace(s, gradient_accumulation=n)
    if not spared:
        chunked = replace(s, activation_checkpointing=True)
        yield "set learner.activation_checkpointing=true", chunked
        for n in parts:
            words = f"set learner.activation_checkpointing=true and learner.gradient_accumulation={n}"
            yield words, replace(chunked, gradient_accumulation=n)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.0f} MiB"


def device_memory(device: torch.device) -> int:
    """Bytes of memory of a device of this machine."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()


def memory() -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    machine, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), container_limit()
    return machine if limit is None else min(machine, limit)
