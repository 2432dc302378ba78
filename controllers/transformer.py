"""Transformer block with causal attention over a sliding window (Vaswani et al. 2017; pre-norm, Xiong et al. 2020)."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import linear
from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.precision import wide
from mneme.controllers.scans.attention.torch import attention_scan, attention_step, last_cut, steps_since_reset
from mneme.controllers.settings import TransformerSettings

LONGEST_WINDOW = 512
"""Steps that the window takes from the horizon at most; a longer one has to be asked for."""


class TransformerController(Controller):
    """h = W x where x is not as wide as h; then h += attention(norm(h)) and h += MLP(norm(h)), or gates for the +=.

    It carries `memory` [B, window_size - 1, 2 * hidden_size / num_heads], the key and value of each step before, the
    newest last, and `past` [B, 1], how many steps the episode has behind it. All of an environment's
    2 * window_size * hidden_size / num_heads numbers move on at every step. An episode starts with nothing to look
    back on, so that `initial_carry` has nothing to learn; what is in the window does not fade, and no distance is
    preferred at the start, so that `chrono` has nothing to spread."""

    settings_class = TransformerSettings
    cuts_gradients = True
    mixes_precision = True
    step_backends: Sequence[str] = ("numba", "torch")

    def __init__(self, input_size: int, settings: TransformerSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        window = settings.window_size or max(2, min(horizon + 1, LONGEST_WINDOW))
        heads = settings.num_heads or math.gcd(hidden, 4)
        width = hidden // heads
        super().__init__(input_size, hidden, {"memory": (window - 1, 2 * width), "past": (1,)}, learn_initial=False)
        self.width = width
        self.embed = nn.Identity() if input_size == hidden else linear(input_size, hidden, 1.0, generator)
        self.attention_norm = LayerNorm(hidden)
        self.attention_in = linear(hidden, hidden + 2 * width, 1.0, generator)
        self.attention_out = linear(hidden, hidden, 1.0, generator)
        self.bias = nn.Parameter(torch.zeros(heads, window))
        self.mlp_norm = LayerNorm(hidden)
        self.mlp_in = linear(hidden, settings.mlp_ratio * hidden, math.sqrt(2), generator)
        self.mlp_out = linear(settings.mlp_ratio * hidden, hidden, 1.0, generator)
        self.step_backends = ("torch",) if settings.gate == "gru" else type(self).step_backends
        self.gates = nn.ModuleList(GruGate(hidden, generator) for _ in range(2)) if settings.gate == "gru" else None

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH, past_B1 = self.embed(x_BD), carry["past"]
        q_BNE, memory_BM = self._project(h_BH)
        memory_BWM = torch.cat([carry["memory"], memory_BM.unsqueeze(1)], 1)
        read_BNE = attention_step(q_BNE, memory_BWM, past_B1[:, 0], self.bias)
        return self._join(h_BH, read_BNE), {"memory": memory_BWM[:, 1:], "past": past_B1 + 1}

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.cell(x_BD, carry)

    def stepper(self) -> Step:
        if not self.steps_compile(self.bias.device):
            return super().stepper()
        from mneme.controllers.scans.attention.step import (  # here, as numba may be missing
            TransformerLayers,
            transformer_step,
        )

        return transformer_step(TransformerLayers(*(getattr(self, name) for name in TransformerLayers._fields)))

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        T, past_B1 = len(x_TBD), carry["past"]
        h_TBH = wide(self.embed(x_TBD))
        q_TBNE, memory_TBM = self._project(h_TBH)
        memory_BSM = torch.cat([carry["memory"], memory_TBM.transpose(0, 1)], 1)
        if cut_TB is not None:
            past_B1 = torch.where(cut_TB.any(0).unsqueeze(1), past_B1.detach(), past_B1)
        past_TB = steps_since_reset(reset_TB, past_B1[:, 0])
        read_TBNE = attention_scan(q_TBNE, memory_BSM, past_TB, self.bias, cut_TB)
        distance_P = torch.arange(memory_BSM.shape[1] - T - 1, -1, -1, device=x_TBD.device)
        gone_BP = reset_TB.any(0).unsqueeze(1) & (distance_P > past_TB[-1].unsqueeze(1))
        last_BPM = memory_BSM[:, T:]
        if cut_TB is not None:
            flows_BP = T - 1 - distance_P >= last_cut(cut_TB)[-1].unsqueeze(1)
            last_BPM = torch.where(flows_BP.unsqueeze(-1), last_BPM, last_BPM.detach())
        after = {"memory": last_BPM.masked_fill(gone_BP.unsqueeze(-1), 0), "past": past_TB[-1:].t() + 1}
        return self._join(h_TBH, read_TBNE), after

    def _project(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The queries [..., N, E] and what is remembered [..., 2 E] of a stream [..., H]."""
        q, memory = self.attention_in(self.attention_norm(h)).split([h.shape[-1], 2 * self.width], -1)
        return q.unflatten(-1, (-1, self.width)), memory

    def _join(self, h: Tensor, read: Tensor) -> Tensor:
        """The block's output [..., H] from the stream and from what each head has read, [..., N, E]."""
        h = self._add(0, h, self.attention_out(read.flatten(-2)))
        return self._add(1, h, self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(h)))))

    def _add(self, branch: int, h: Tensor, y: Tensor) -> Tensor:
        joined: Tensor = h + y if self.gates is None else self.gates[branch](h, y)
        return joined


class GruGate(nn.Module):
    """GTrXL's gate, equations 5 to 8: the branch y passes a ReLU and enters the stream h as a GRU's input would.

    Its gates start all but shut (bias 2), so that the block starts near the identity.
    """

    def __init__(self, hidden: int, generator: Generator) -> None:
        super().__init__()
        self.of_branch = linear(hidden, 3 * hidden, 1.0, generator)
        self.of_stream = linear(hidden, 2 * hidden, 1.0, generator)
        self.of_reset_stream = linear(hidden, hidden, 1.0, generator)
        nn.init.constant_(self.of_branch.bias[hidden : 2 * hidden], -2.0)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        hidden = h.shape[-1]
        gates, candidate = wide(self.of_branch(torch.relu(y))).split([2 * hidden, hidden], -1)
        r, z = torch.sigmoid(gates + self.of_stream(h)).chunk(2, -1)
        return torch.lerp(h, torch.tanh(candidate + self.of_reset_stream(r * h)), z)
