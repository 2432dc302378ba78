"""The one contract of every sequence model: carry in, carry out.

Axis letters: T time, B environments, D input features, H output features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mneme.controllers.precision import autocast, autocasting, wide
from mneme.controllers.scans.backends import REFERENCE, chosen_backend, obstacle
from mneme.controllers.scans.resets import cut_carry
from mneme.controllers.settings import ControllerSettings
from mneme.controllers.traces import Elementwise, Run

Carry = dict[str, Tensor]
"""Recurrent state: one [B, ...] tensor a name. Empty for a model without memory."""

Step = Callable[[Tensor, Tensor, Carry], tuple[Tensor, Carry]]
"""Inputs [B, D], reset flags bool [B] and the carry to outputs [B, H] and the next carry."""


def reset_carry(reset_B: Tensor, initial: Mapping[str, Tensor], carry: Carry) -> Carry:
    """`carry` with the lanes where `reset_B` is true replaced by `initial` ([...] or [B, ...] a name)."""
    return {
        name: torch.where(reset_B.view(-1, *(1,) * (value.dim() - 1)), initial[name], value)
        for name, value in carry.items()
    }


class Controller(nn.Module, ABC):
    """A sequence model that never hides recurrent state.

    A subclass says what one step computes (`cell`, in plain differentiable operations). It may also bring a faster
    `fast_scan`, which must agree with the loop over `cell` in outputs and in all gradients, and a faster `fast_step`
    for acting, which must agree with the scan.
    """

    settings_class: type[ControllerSettings] = ControllerSettings  # of what it has to choose
    backends: Sequence[str] = ("torch",)  # that `fast_scan` has, fastest first
    step_backends: Sequence[str] | None = None  # that `stepper` has, where they are others than the scan's
    backend: str = "auto"  # as the settings say
    mixes_precision: bool = False  # `fast_scan` leaves float32 in its products alone under autocast, or all runs in it
    cuts_gradients: bool = False  # `fast_scan` takes `cut_TB`; otherwise it is called between the cuts

    def __init__(
        self,
        input_size: int,
        output_size: int,
        carry_shapes: Mapping[str, tuple[int, ...]],
        learn_initial: bool,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self._carry_names = tuple(carry_shapes)
        for name, shape in carry_shapes.items():
            if learn_initial:
                self.register_parameter(f"initial_{name}", nn.Parameter(torch.zeros(shape)))
            else:
                self.register_buffer(f"initial_{name}", torch.zeros(shape), persistent=False)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of its parameters and initial carry, and so of its inputs; None if it has neither and takes any."""
        for parameter in self.parameters():
            return parameter.dtype
        for start in self.initial().values():
            return start.dtype
        return None

    @abstractmethod
    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One step without resets, written for the reader."""

    def backend_on(self, device: torch.device) -> str:
        """Which implementation of the scan runs on this device; see `chosen_backend`."""
        return chosen_backend(self.backend, device, self.backends, self.dtype or torch.float32)

    def check_backend(self, device: torch.device) -> None:
        """Refuse a backend that the settings force and that cannot run on this device.

        Raises:
            ValueError: it cannot; says why.
        """
        forced, runs = self.backend, self.backend_on(device)
        if forced not in ("auto", runs):
            dtype = self.dtype or torch.float32
            why = obstacle(forced, device, dtype, forced=True) or f"it is not exact for {dtype}"
            raise ValueError(
                f"{ControllerSettings.key('backend')} is {forced!r}, which does not run on {device} here: {why}; "
                f"choose auto or {runs}"
            )

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """`scan` on checked arguments; without an override it is `reference_scan`.

        An override may leave `cut_TB` out; with it, the class sets `cuts_gradients`.
        """
        return self.reference_scan(x_TBD, reset_TB, carry, cut_TB)

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One step without resets and without autograd, for acting: ([B, D], carry) -> ([B, H], carry).

        It may overwrite the tensors of `carry`, and return them; the output shares no memory with the carry. Without an
        override it is a scan of one step.
        """
        y_TBH, carry = self.fast_scan(x_BD.unsqueeze(0), x_BD.new_zeros(1, len(x_BD), dtype=torch.bool), carry)
        return y_TBH[0], carry

    def elementwise(self) -> dict[str, Elementwise]:
        """The recurrences that its carry is made by, by the carry's parts, as far as units go each by itself: those can
        have traces (`controllers/traces.py`). Empty if none does."""
        return {}

    def elementwise_runs(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        """The steps of each of these recurrences in a scan of these arguments; without autograd."""
        return {}

    def signals(self, y_TBH: Tensor) -> dict[str, Tensor]:
        """Further quantities in the outputs of a scan, [T, B] by name, for metrics and for an auxiliary loss."""
        return {}

    def auxiliary_loss(self, means_B: Mapping[str, Tensor]) -> Tensor | None:
        """The loss added at each step of B sequences whose signals have these means, [B], or None for none.

        A mean is over all valid steps of a sequence, so that the loss is the same however the sequence is cut.
        """
        return None

    @property
    def has_auxiliary_loss(self) -> bool:
        """True if the controller defines an `auxiliary_loss`."""
        return type(self).auxiliary_loss is not Controller.auxiliary_loss

    def initial(self) -> Carry:
        """The initial carry of one lane: the learned parameters or zeros, [...] by name, without the lane axis."""
        return {name: getattr(self, f"initial_{name}") for name in self._carry_names}

    def initial_carry(self, batch: int) -> Carry:
        """The initial carry of `batch` lanes, [batch, ...] by name; differentiable where it is learned.

        Raises:
            ValueError: `batch` is negative.
        """
        if batch < 0:
            raise ValueError(f"batch is {batch}; it must be at least 0")
        return {name: value.expand(batch, *value.shape).clone() for name, value in self.initial().items()}

    def scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None) -> tuple[Tensor, Carry]:
        """Consume T steps: ([T, B, D], bool [T, B], carry) -> ([T, B, H], carry after the last step).

        Where `reset_TB[t, b]` is true, lane b starts from the initial carry before it consumes `x[t, b]`. Where
        `cut_TB` (bool [T, B]) is true, the carry goes on before that step and its gradient does not: backpropagation
        through time is truncated there, as by `detach` in the loop over cells. Elsewhere gradients flow into `carry`,
        and into a learned initial carry. No argument is modified.

        Raises:
            ValueError: a shape, dtype, device or carry name does not fit, or T is 0.
        """
        self._check(x_TBD, reset_TB, carry, cut_TB)
        return self.run(x_TBD, reset_TB, carry, cut_TB)

    def scan_with_signals(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry, dict[str, Tensor]]:
        """`scan`, and what its outputs say besides."""
        self._check(x_TBD, reset_TB, carry, cut_TB)
        return self.run_with_signals(x_TBD, reset_TB, carry, cut_TB)

    def run_with_signals(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry, dict[str, Tensor]]:
        """`scan_with_signals` on checked arguments."""
        y_TBH, carry = self.run(x_TBD, reset_TB, carry, cut_TB)
        with autocast(x_TBD.device, enabled=False):
            return y_TBH, carry, self.signals(y_TBH)

    def run(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None) -> tuple[Tensor, Carry]:
        """`scan` on checked arguments, by the backend that was chosen; its results are float32 under autocast too."""
        if not autocasting(x_TBD.device):
            return self._run(x_TBD, reset_TB, carry, cut_TB)
        with autocast(x_TBD.device, enabled=self.mixes_precision and self.backend != REFERENCE):
            y_TBH, carry = self._run(x_TBD, reset_TB, carry, cut_TB)
        return wide(y_TBH), {name: wide(value) for name, value in carry.items()}

    def _run(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None) -> tuple[Tensor, Carry]:
        if self.backend == REFERENCE:
            return self.reference_scan(x_TBD, reset_TB, carry, cut_TB)
        if cut_TB is None or not torch.is_grad_enabled():
            return self.fast_scan(x_TBD, reset_TB, carry)
        if self.cuts_gradients:
            return self.fast_scan(x_TBD, reset_TB, carry, cut_TB)
        return self._between_cuts(x_TBD, reset_TB, carry, cut_TB)

    def _between_cuts(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor) -> tuple[Tensor, Carry]:
        """`run` by a scan that knows no cuts: it starts anew at every step that has one in any lane."""
        bounds = [0, *(t for t in cut_TB.any(1).nonzero()[:, 0].tolist() if t), len(cut_TB)]
        sizes = [stop - start for start, stop in pairwise(bounds)]
        outputs = []
        for x_KBD, reset_KB, cut_KB in zip(x_TBD.split(sizes), reset_TB.split(sizes), cut_TB.split(sizes), strict=True):
            y_KBH, carry = self.fast_scan(x_KBD, reset_KB, cut_carry(cut_KB[0], carry))
            outputs.append(y_KBH)
        return torch.cat(outputs), carry

    def step(self, x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """`scan` with T = 1: ([B, D], bool [B], carry) -> ([B, H], carry); without autograd by `fast_step`.

        Raises:
            ValueError: as for `scan`.
        """
        self._check(x_BD.unsqueeze(0), reset_B.unsqueeze(0), carry)
        if not torch.is_grad_enabled():
            carry = {name: value.clone() for name, value in carry.items()}
        return self._reset_and_step(x_BD, reset_B, carry)

    def steps_compile(self, device: torch.device) -> bool:
        """True if `stepper` runs in numba on this device."""
        if self.step_backends is None:
            return self.backend_on(device) == "numba"
        return chosen_backend(self.backend, device, self.step_backends, self.dtype or torch.float32) == "numba"

    def stepper(self) -> Step:
        """`step` for many steps without autograd, with the weights as they are now: it may lay them out once.

        It checks nothing and may overwrite the carry, so that a state of a megabyte is not copied at each step; what it
        returns is good until the next call.
        """
        return self._reset_and_step

    def _reset_and_step(self, x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        if torch.is_grad_enabled() or self.backend == REFERENCE:
            y_TBH, carry = self.run(x_BD.unsqueeze(0), reset_B.unsqueeze(0), carry)
            return y_TBH[0], carry
        if len(lanes := reset_B.nonzero()[:, 0]):
            for name, start in self.initial().items():
                carry[name].index_copy_(0, lanes, start.expand(len(lanes), *start.shape))
        return self.fast_step(x_BD, carry)

    def reference_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """The slow, obvious `scan` that the fast one is held against: a loop over `cell`, under autograd."""
        initial = self.initial()
        outputs = []
        for t, (x_BD, reset_B) in enumerate(zip(x_TBD, reset_TB, strict=True)):
            if cut_TB is not None:
                carry = cut_carry(cut_TB[t], carry)
            y_BH, carry = self.cell(x_BD, reset_carry(reset_B, initial, carry))
            outputs.append(y_BH)
        return torch.stack(outputs), carry

    def _check(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None) -> None:
        """Compare shapes, types and devices only, never values: cheap enough for the step path."""
        if not isinstance(x_TBD, Tensor):
            raise ValueError(f"the input is {_describe(x_TBD)}; it must be a tensor [T, B, {self.input_size}]")
        shape = x_TBD.shape
        if len(shape) != 3 or shape[2] != self.input_size:
            raise ValueError(f"the input has shape {list(shape)}; it must be [T, B, {self.input_size}]")
        if 0 in shape[:2]:
            lacking = "time steps" if shape[0] == 0 else "lanes"
            raise ValueError(f"the input has 0 {lacking}; a scan needs at least 1")
        initial, device, dtype = self.initial(), x_TBD.device, self.dtype
        if dtype is not None and x_TBD.dtype != dtype:
            raise ValueError(f"the input is {_describe(x_TBD)}; it must be {dtype}, as the controller is")
        flags = {"the reset flags": reset_TB} | ({} if cut_TB is None else {"the gradient cuts": cut_TB})
        for what, flags_TB in flags.items():
            if not isinstance(flags_TB, Tensor) or flags_TB.dtype != torch.bool or flags_TB.shape != shape[:2]:
                raise ValueError(
                    f"{what} are {_describe(flags_TB)}; they must be torch.bool of shape {list(shape[:2])}"
                )
        if not isinstance(carry, dict):
            raise ValueError(f"the carry is {carry!r}; pass what initial_carry or the previous scan returned")
        if carry.keys() != initial.keys():
            raise ValueError(
                f"the carry holds {sorted(carry)}; "
                f"this controller needs exactly {sorted(initial)}: "
                "pass what initial_carry or the previous scan returned"
            )
        for name, start in initial.items():
            value = carry[name]
            if not isinstance(value, Tensor) or value.dtype != start.dtype or value.shape != (shape[1], *start.shape):
                raise ValueError(
                    f"carry {name!r} is {_describe(value)}; "
                    f"it must be {start.dtype} of shape {[shape[1], *start.shape]}"
                )
            if value.device != device:
                raise _apart(f"carry {name!r} is", value, device)
            if start.device != device:
                raise _apart("the controller is", start, device)
        for what, flags_TB in flags.items():
            if flags_TB.device != device:
                raise _apart(f"{what} are", flags_TB, device)


def _apart(what: str, value: Tensor, device: torch.device) -> ValueError:
    return ValueError(f"{what} on {value.device} and the input on {device}; move them to one device")


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {list(value.shape)}"
