"""The stages, and a worker of any of them: `python -m benchmarks.gpu.work STAGE OPTIONS`.

A stage is a module with `items(device, kinds, tiny)`, the most important first, and `work(item, device, tiny, tell)`,
which tells each result as it comes.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

from benchmarks.gpu.stages import serve


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One question to a GPU."""

    title: str
    seconds: float  # that it may take
    item_seconds: float  # that one of its items may take
    at_once: int = 1  # workers
    packages: tuple[str, ...] = ()  # that it needs besides torch and numpy

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


TRAINING = ("gymnasium", "pyarrow")
STAGES = {
    "agreement": Stage(title="Are the scans right?", seconds=90, item_seconds=40, at_once=8),
    "solving": Stage(title="Does it learn?", seconds=55, item_seconds=30, packages=TRAINING),
    "speed": Stage(title="How fast does it train?", seconds=75, item_seconds=25, packages=TRAINING),
    "timing": Stage(title="How fast are the scans?", seconds=75, item_seconds=25),
    "recurrences": Stage(title="How near are recurrences to the memory's speed?", seconds=25, item_seconds=15),
    "lengths": Stage(title="How long may sequences be?", seconds=30, item_seconds=15, packages=TRAINING),
}
"""By the name of their module, in the order in which they come; in all 350 seconds."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What workers have to know."""

    device: str
    tiny: bool
    kinds: tuple[str, ...]

    def words(self) -> list[str]:
        """Arguments of a worker, from which `of` makes the options again."""
        return [self.device, "tiny" if self.tiny else "whole", *self.kinds]

    @classmethod
    def of(cls, device: str, size: str, *kinds: str) -> Self:
        """What `words` were given of."""
        return cls(device=device, tiny=size == "tiny", kinds=kinds)

    def items(self, stage: str) -> list[str]:
        """The items of a stage."""
        device, module = _device_and_module(self.device, stage)
        found: list[str] = module.items(device, list(self.kinds), self.tiny)
        return found

    def serve(self, stage: str) -> None:
        """Be a worker of a stage."""
        device, module = _device_and_module(self.device, stage)
        serve(lambda item, tell: module.work(item, device, self.tiny, tell))


def _device_and_module(device: str, stage: str) -> tuple[Any, Any]:
    import torch  # here, as whoever only wants to know the stages can do without

    return torch.device(device), import_module(f"benchmarks.gpu.{stage}")


if __name__ == "__main__":
    Options.of(*sys.argv[2:]).serve(sys.argv[1])
