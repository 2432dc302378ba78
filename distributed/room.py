"""A check that a network's inputs and outputs fit into memory at all, before anything of that size is made."""

import os
from collections.abc import Iterator
from pathlib import Path

from mneme.controllers import OneHot, PolicySpec
from mneme.distributed.config import ServiceConfig

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


def memory() -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    limit = Path("/sys/fs/cgroup/memory.max")
    limits = [int(text) for text in [limit.read_text().strip() if limit.exists() else ""] if text.isdecimal()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])
