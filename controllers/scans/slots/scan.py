"""The slot memory over T steps, by whichever implementation is asked for."""

from torch import Tensor

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.slots.cell import Rule, Slots, read_weight
from mneme.controllers.scans.slots.torch import torch_slots_scan


@in_float32
def slots_scan(
    query_TBD: Tensor,
    logit_TB: Tensor,
    value_TBD: Tensor,
    reset_TB: Tensor,
    memory: Slots,
    decay: float,
    rule: Rule,
    chunk: int,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Slots]:
    """The vectors that the steps read [T, B, D], and the memory after the last step.

    Where `reset_TB` is true, the environment's memory is emptied before that step. The result can be differentiated in
    every tensor but the flags.

    Args:
        query_TBD: the queries by which the memory is read.
        logit_TB: the logits of the write gates.
        value_TBD: the values that are written.
        reset_TB: bool.
        memory: the memory before the first step.
        decay: share of a slot's content that a write takes away, besides what it replaces.
        rule: which slot is written to, and how; see `scans.slots.cell`.
        chunk: how many steps "torch" computes at once.
        backend: "torch" or "numba".
        cut_TB: bool, where no gradient goes back to the memory before the step.
    """
    memory = memory._replace(usage=read_weight(memory.usage, rule) if rule == "recent" else memory.usage)
    if backend == "numba":
        from mneme.controllers.scans.slots.numba import SlotsInputs, numba_slots_scan  # here, as numba may be missing

        inputs = SlotsInputs(query_TBD, logit_TB, value_TBD)
        return numba_slots_scan(inputs, reset_TB, memory, decay, rule == "recent", cut_TB)
    return torch_slots_scan(query_TBD, logit_TB, value_TBD, reset_TB, memory, decay, rule, chunk, cut_TB)
