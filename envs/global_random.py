"""The generators that a whole process shares (random, numpy.random, torch), kept apart for those who draw from them.

Many environments draw from them. In a subprocess of its own an environment has them to itself. Where it lives beside
others, such as the environments of an evaluation, it brings its own streams, which are in place only while it runs.

Not covered: what no process can seed from inside (PYTHONHASHSEED, which orders sets of strings), generators that an
environment makes for itself without a seed, and, beside others, the generators of GPUs. At each change the second
normal number of a pair, which numpy.random keeps for its next call, is dropped.
"""

import random
import sys
from types import TracebackType
from typing import Any

import numpy as np

set_bit_generator: Any = np.random.set_bit_generator  # type: ignore[attr-defined]
get_bit_generator: Any = np.random.get_bit_generator  # type: ignore[attr-defined]

Entropy = int | tuple[int, ...]


def seed_process(entropy: Entropy) -> None:
    """Seed this process's generators; torch's only where torch has been imported."""
    numpy_seed, random_seed, torch_seed = _seeds(entropy)
    set_bit_generator(np.random.MT19937(numpy_seed))
    random.seed(random_seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(torch_seed)


class GlobalStreams:
    """A context in which the process's generators are in states of one's own; they go on from one time to the next.

    Args:
        entropy: what the states follow from.
    """

    def __init__(self, entropy: Entropy) -> None:
        self.seed(entropy)

    def seed(self, entropy: Entropy) -> None:
        """Begin anew, outside of the context."""
        numpy_seed, random_seed, self._torch_seed = _seeds(entropy)
        self._numpy: Any = np.random.MT19937(numpy_seed)
        self._random: Any = random.Random(random_seed).getstate()
        self._torch_state: Any = None

    def __enter__(self) -> None:
        self._torch: Any = sys.modules.get("torch")
        if self._torch is not None and self._torch_state is None:
            self._torch_state = self._torch.Generator().manual_seed(self._torch_seed).get_state()
        self._swap()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._swap()

    def _swap(self) -> None:
        numpy_before, random_before = get_bit_generator(), random.getstate()
        set_bit_generator(self._numpy)
        random.setstate(self._random)
        self._numpy, self._random = numpy_before, random_before
        if self._torch is not None:
            torch_before = self._torch.random.default_generator.get_state()
            self._torch.random.default_generator.set_state(self._torch_state)
            self._torch_state = torch_before


def _seeds(entropy: Entropy) -> tuple[np.random.SeedSequence, int, int]:
    children = np.random.SeedSequence(entropy).spawn(3)
    random_seed, torch_seed = (int(child.generate_state(1, np.uint64)[0] >> np.uint64(1)) for child in children[1:])
    return children[0], random_seed, torch_seed
