"""The longest sequences that one pass of full backpropagation has room for, twice as long each time.

`whole` keeps all activations, `checkpointed` those of one chunk at a time. Sequences are episodes of delayed cue, end
to end; 256 of them, in one minibatch.
"""

from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.gpu.stages import Tell
from benchmarks.gpu.trainer import Run, Trainer, fast_backends, peak_bytes, settle
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries

SEQUENCES, TINY_SEQUENCES = 256, 4
LONGEST, TINY_LONGEST = 2**20, 24  # steps at which the search ends in any case
FIRST, TINY_FIRST = 8, 1  # episodes with which it begins


def items(device: torch.device, kinds: list[str], tiny: bool) -> list[str]:
    """Both ways for each kind."""
    fast, sequences = fast_backends(device, kinds), TINY_SEQUENCES if tiny else SEQUENCES
    places = ("whole", "checkpointed")
    return [str(Run(place, kind, fast[kind], sequences)) for kind in fast for place in places]


def work(item: str, device: torch.device, tiny: bool, tell: Tell) -> None:
    """Tell the time and the memory of every length, and the first that does not fit."""
    run = Run.of(item)
    settings = {"num_epochs": 1, "num_minibatches": 1, "activation_checkpointing": run.place == "checkpointed"}
    trainer = Trainer(run._replace(place="device"), device, tiny, **settings)
    batch, _ = trainer.collect()
    trainer.learn(batch)  # what is compiled and allocated once
    times = TINY_FIRST if tiny else FIRST
    while (steps := times * batch.length) <= (TINY_LONGEST if tiny else LONGEST):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        began = perf_counter()
        try:
            trainer.learn(repeated(batch, times, device))
            settle(device)
        except torch.OutOfMemoryError:
            tell({"steps": steps, "fits": False})
            return
        tell({"steps": steps, "fits": True, "seconds": perf_counter() - began, "peak_bytes": peak_bytes(device)})
        times *= 2


_BY_STEP = (
    "actions", "log_probs", "values", "final_values", "final_index", "rewards", "terminated", "truncated", "valid",
    "resets",
)  # fmt: skip


def repeated(batch: SequenceBatch, times: int, device: torch.device) -> SequenceBatch:
    """Sequences of whole episodes, so many times end to end."""
    T = batch.length

    def along(x: Tensor) -> Tensor:
        return torch.cat([x[:, :T].repeat(1, times, *(1,) * (x.dim() - 2)), x[:, T:]], 1)

    return replace(
        batch,
        **{name: along(getattr(batch, name)) for name in _BY_STEP},
        observations={name: along(x) for name, x in batch.observations.items()},
        stored=StoredCarries.of(batch.carries, device),
        carry_stride=T * times,
    )
