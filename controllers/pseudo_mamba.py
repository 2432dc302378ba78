"""Mamba-2 beside an external memory of slots, read by content and written under a learned gate.

Axis letters: T time, B environments, D input features, M model features, S slot size, Y = M + S output features.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import linear
from mneme.controllers.mamba2 import Mamba2Controller
from mneme.controllers.precision import gates
from mneme.controllers.scans.backends import REFERENCE, chosen_backend
from mneme.controllers.scans.slots.cell import Slots, slots_read, slots_write
from mneme.controllers.scans.slots.scan import slots_scan
from mneme.controllers.scans.slots.torch import write_in_place
from mneme.controllers.settings import PseudoMambaSettings

_Step = Callable[[Tensor, Carry], tuple[Tensor, Carry]]
_Write = Callable[[Tensor, Tensor, Slots], Slots]


class PseudoMambaController(Controller):
    """y = [h ; r]: what Mamba-2 makes of the step, and what was read. `scans.slots.cell` has the memory's rules.

    It carries what Mamba-2 does and `slots` [B, num_slots, S], `usage` and `age` [B, num_slots], which always start
    empty. The gate's bias starts at logit(1 / horizon), so that a slot outlives a horizon (rule recent), or at 0
    (classic).

    The published memory is rule "classic" with query "state": the query is made of h one step before, what was read
    joins Mamba-2's input and the gate's, and `h` [B, M] is carried too. With query "input" the query is made of the
    input, and gate and value of h.
    """

    settings_class = PseudoMambaSettings
    cuts_gradients = True
    backends = ("mamba_ssm", "numba", "torch")
    initial_slots: Tensor
    initial_usage: Tensor
    initial_age: Tensor
    initial_h: Tensor

    def __init__(self, input_size: int, settings: PseudoMambaSettings, horizon: int, generator: Generator) -> None:
        hidden, num_slots, slot_size = settings.hidden_size, settings.num_slots, settings.slot_size
        published = settings.query == "state"
        shapes = {"slots": (num_slots, slot_size), "usage": (num_slots,), "age": (num_slots,)}
        if published:
            shapes["h"] = (hidden,)
        super().__init__(input_size, hidden + slot_size, shapes, learn_initial=False)
        self.rule, self.query, self.decay = settings.rule, settings.query, settings.decay
        self.mixes_precision = not published  # that goes step by step
        self.gate_coef, self.chunk_size = settings.gate_coef, settings.chunk_size
        self.gate_target = 1 / max(2, horizon)
        self.core = Mamba2Controller(input_size + slot_size * published, settings, horizon, generator)
        self.core.backend = settings.backend
        self.to_query = linear(hidden if published else input_size, slot_size, 1.0, generator)
        self.to_value = linear(hidden, slot_size, 1.0, generator)
        self.to_gate = linear(hidden + slot_size * published, 1, 0.1, generator)
        if settings.rule == "recent":
            nn.init.constant_(self.to_gate.bias, -math.log(1 / self.gate_target - 1))

    def initial(self) -> Carry:
        return super().initial() | self.core.initial()

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        def write(logit_B: Tensor, value_BS: Tensor, memory: Slots) -> Slots:
            return slots_write(logit_B, value_BS, memory, self.decay, self.rule)

        return self._step(x_BD, carry, self.core.cell, write)

    def backend_on(self, device: torch.device) -> str:
        """Mamba-2's, or where that is torch the slots'; torch with query=state, which goes step by step."""
        core = self.core.backend_on(device)
        if core == REFERENCE or self.query == "state":
            return core if core == REFERENCE else "torch"
        slots = chosen_backend(self.backend, device, ("numba", "torch"), self.initial_slots.dtype)
        return slots if core == "torch" else core

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        if self.query == "state":
            return self.reference_scan(x_TBD, reset_TB, carry, cut_TB)
        memory, core = self._parts(carry)
        h_TBM, core = self.core.fast_scan(x_TBD, reset_TB, core, cut_TB)
        inputs = self._query(x_TBD), self._gate_logit(h_TBM), self.to_value(h_TBM)
        backend = self.backend_on(x_TBD.device)
        r_TBS, memory = slots_scan(*inputs, reset_TB, memory, self.decay, self.rule, self.chunk_size, backend, cut_TB)
        return torch.cat([h_TBM, r_TBS], 2), core | memory._asdict()

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        def write(logit_B: Tensor, value_BS: Tensor, memory: Slots) -> Slots:
            write_in_place(logit_B, value_BS, memory, self.decay, self.rule)
            return memory

        return self._step(x_BD, carry, self.core.fast_step, write)

    def stepper(self) -> Step:
        if self.backend_on(self.initial_slots.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.slots.step import SlotsWeights, slots_step  # here, as numba may be missing

        query = (value / math.sqrt(self.to_query.out_features) for value in self.to_query.parameters())
        weights = SlotsWeights(*query, *self.to_value.parameters(), *self.to_gate.parameters())
        through = slots_step(weights, len(self.initial_usage), self.decay, self.rule == "recent")
        core_step = self.core.stepper()

        def step(x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            h_BM, core = core_step(x_BD, reset_B, carry)
            y_BY, memory = through(torch.cat([x_BD, h_BM], 1), reset_B, carry)
            return y_BY, core | memory

        return step

    def _step(self, x_BD: Tensor, carry: Carry, core_step: _Step, write: _Write) -> tuple[Tensor, Carry]:
        memory, core = self._parts(carry)
        published = self.query == "state"
        r_BS = slots_read(self._query(carry["h"] if published else x_BD), memory, self.rule)
        h_BM, core = core_step(torch.cat([x_BD, r_BS], 1) if published else x_BD, core)
        y_BY = torch.cat([h_BM, r_BS], 1)
        memory = write(self._gate_logit(y_BY), self.to_value(h_BM), memory)
        return y_BY, core | memory._asdict() | ({"h": h_BM.clone()} if published else {})

    def signals(self, y_TBH: Tensor) -> dict[str, Tensor]:
        return {"gate": self._gate_logit(y_TBH).sigmoid()}

    def auxiliary_loss(self, means_B: Mapping[str, Tensor]) -> Tensor:
        return self.gate_coef * (means_B["gate"] - self.gate_target).square()

    def _query(self, x: Tensor) -> Tensor:
        """[..., S], scaled as in Vaswani et al. 2017, so that scores do not grow with the slot size."""
        query: Tensor = self.to_query(x) / math.sqrt(self.to_query.out_features)
        return query

    def _gate_logit(self, y: Tensor) -> Tensor:
        """[..., Y] -> [...]; what was read has a say only where it is known before the scan."""
        return gates(self.to_gate, y[..., : self.to_gate.in_features]).squeeze(-1)

    def _parts(self, carry: Carry) -> tuple[Slots, Carry]:
        core = {name: carry[name] for name in self.core.initial()}
        return Slots(carry["slots"], carry["usage"], carry["age"]), core
