"""Measure how near the learner is to its floor, and what cached mode can save: `python -m benchmarks.floor`.

The floor of an update is its matrix products alone, on as many threads: those that torch makes are recorded, and those
that the compiled GRU and LSTM make are added. They are repeated on buffers that stay in the cache, so the floor is one
that no learner can reach. Learner and floor take turns; figures are medians of the rounds, in seconds of the processor.
The bound of cached mode is the work of its products over that of full's: what it saves are the recurrent ones that
carry the gradient from step to step.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from statistics import median
from time import process_time
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import RESULTS
from mneme.controllers import CONTROLLERS
from mneme.experiments.machine import cores, describe_machine, versions
from mneme.experiments.update_cost import Trial, make_trial
from mneme.learner import LearnerSettings, ppo
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import shard_gradients
from mneme.learner.objective import plain_objective
from mneme.learner.returns import gae
from mneme.rollout_workers import Fragment

STEPS = 16_640  # of a batch, about: 256 episodes of delayed cue 64
MINIBATCHES = 4
GATES = {"gru": 3, "lstm": 4}  # whose products are made in compiled code
Operand = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


class Product(NamedTuple):
    """A matrix product: its operands."""

    a: Operand
    b: Operand

    @property
    def work(self) -> int:
        """Multiplications."""
        return prod(self.a[0]) * self.b[0][-1]


class _Recorder(TorchDispatchMode):
    """Notes the matrix products that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:] if name in ("mm", "bmm") else args[1:3]
            self.products[Product(*((tuple(x.shape), tuple(x.stride())) for x in (a, b)))] += 1
        return func(*args, **(kwargs or {}))


def trial(kind: str, mode: str, length: int, hidden: int, threads: int) -> Trial:
    """A learner in some mode with a batch of about `STEPS` steps."""
    sequences = max(threads, STEPS // length)
    settings = LearnerSettings(mode=mode, num_epochs=1, num_minibatches=MINIBATCHES, num_threads=threads)  # type: ignore[arg-type]
    made = make_trial(kind, settings, length, sequences, hidden)
    made.update()
    return made


def products_of(kind: str, mode: str, length: int, hidden: int) -> Counter[Product]:
    """The products of one epoch on one thread."""
    learner, arrow, _ = trial(kind, mode, length, hidden, threads=1)
    batch = SequenceBatch.from_fragments([Fragment.from_arrow(arrow)], learner.device)
    ends = (batch.final_values, batch.terminated, batch.truncated, batch.valid)
    returns = gae(batch.rewards, batch.values, *ends, gamma=0.99, lam=0.95)
    recorder = _Recorder()
    for rows in torch.arange(batch.sequences).tensor_split(MINIBATCHES):
        with recorder, patch.object(ppo, "objective", plain_objective):  # whose products are torch's
            shard_gradients(learner.policy, learner.settings, batch, returns, rows, batch.steps // MINIBATCHES)
        if kind in GATES:
            b, gates, inputs = len(rows), GATES[kind] * hidden, learner.policy.controller.input_size
            d = (b * length, gates), (gates, 1)
            recorder.products[Product(((b * length, inputs), (inputs, 1)), ((inputs, gates), (1, inputs)))] += 1
            for size in (inputs, hidden):  # gradients of the weights
                recorder.products[Product(((size, b * length), (1, size)), d)] += 1
            recorder.products[Product(((b, hidden), (hidden, 1)), ((hidden, gates), (1, hidden)))] += length
            if mode != "cached":
                recorder.products[Product(((b, gates), (gates, 1)), ((gates, hidden), (hidden, 1)))] += length
    return recorder.products


def repeater(products: Counter[Product], threads: int) -> Callable[[], None]:
    """Makes the products, each thread its share of the rows."""
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def operands(product: Product) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.empty_strided(*operand).normal_() for operand in product)  # type: ignore[return-value]

    mine = [[(operands(product), count) for product, count in products.items()] for _ in range(threads)]

    def work(share: int) -> None:
        for (a, b), count in mine[share]:
            for _ in range(share, count, threads):
                torch.matmul(a, b)

    return lambda: list(pool.map(work, range(threads))) and None


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor."""
    clock = process_time()
    work()
    return process_time() - clock


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--name", default="floor", help="of the JSON file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "kind", "T", "update, s", "floor, s", "floor / update", "cached / full", "bound", title="Near the floor?"
    )
    rows = []
    for kind in arguments.kinds:
        for length in (64, 256):
            row = {"kind": kind, "length": length} | _measured(kind, length, arguments)
            rows.append(row)
            table.add_row(
                kind, str(length), *(f"{row[name]:.2f}" for name in ("update", "floor", "share", "cached", "bound"))
            )
            print(row, file=sys.stderr)
    Console(width=120).print(table)
    document = {
        "machine": describe_machine(), "versions": versions("torch", "numpy"), "hidden": arguments.hidden,
        "threads": arguments.threads, "rounds": arguments.rounds, "steps": STEPS, "rows": rows,
    }  # fmt: skip
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _measured(kind: str, length: int, arguments: argparse.Namespace) -> dict[str, float]:
    of_full, of_cached = (products_of(kind, mode, length, arguments.hidden) for mode in ("full", "cached"))
    full, cached = (trial(kind, mode, length, arguments.hidden, arguments.threads) for mode in ("full", "cached"))
    contestants = {
        "update": full.update, "cached_update": cached.update, "floor": repeater(of_full, arguments.threads),
    }  # fmt: skip
    for work in contestants.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, work in contestants.items():
            taken[name].append(seconds(work))
    middle = {name: median(values) for name, values in taken.items()}
    work_of_full, work_of_cached = (sum(p.work * n for p, n in made.items()) for made in (of_full, of_cached))
    return middle | {
        "share": middle["floor"] / middle["update"],
        "cached": middle["cached_update"] / middle["update"],
        "bound": work_of_cached / work_of_full,
    }


if __name__ == "__main__":
    sys.exit(main())
