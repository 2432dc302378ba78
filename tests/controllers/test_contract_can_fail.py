"""Each check of the contract finds the fault that it is there for, in controllers that are broken on purpose."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from mneme.controllers import Carry, Controller, ControllerSettings, Elementwise, Run
from mneme.controllers.contract import CHECKS, Build, findings
from mneme.controllers.controller import Step
from mneme.controllers.traces import State


class Sound(Controller):
    """h' = tanh(W x + U h): nothing is wrong with it."""

    def __init__(self, input_size: int, settings: ControllerSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        super().__init__(input_size, hidden, {"h": (hidden,)}, settings.initial_carry == "learned")
        self.w_ih = nn.Parameter(torch.randn(hidden, input_size, generator=generator))
        self.w_hh = nn.Parameter(torch.randn(hidden, hidden, generator=generator) / hidden)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = torch.tanh(x_BD @ self.w_ih.t() + carry["h"] @ self.w_hh.t())
        return h_BH, {"h": h_BH}

    def loop(self, *arguments: Any) -> tuple[Tensor, Carry]:
        return super().reference_scan(*arguments)


class NarrowOutput(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(*arguments)
        return y_TBH[..., 1:], last


class ForgottenCarry(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        return self.loop(*arguments)[0], {}


class LateReset(Sound):
    def fast_scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.loop(x_TBD, reset_TB.roll(1, 0), carry)


class NoReset(Sound):
    def reference_scan(self, x_TBD: Tensor, reset_TB: Tensor, *rest: Any) -> tuple[Tensor, Carry]:
        return self.loop(x_TBD, torch.zeros_like(reset_TB), *rest)


class NoCuts(Sound):
    cuts_gradients = True

    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        return self.loop(*arguments[:3])


class OtherStep(Sound):
    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        y_BH, carry = super().fast_step(x_BD, carry)
        return y_BH + 1e-8, carry


class OtherWithoutGradient(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(*arguments)
        return (y_TBH if torch.is_grad_enabled() else y_TBH + 1e-8), last


class Rounded(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(*arguments)
        return (y_TBH.half().float() if y_TBH.dtype == torch.float32 else y_TBH), last


class WrongWhereWide(Sound):
    def fast_scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(x_TBD, reset_TB, carry)
        return y_TBH + 1e-6 * (x_TBD.shape[1] > 512), last


class Clock(Sound):
    """It counts the steps of the call."""

    def reference_scan(self, x_TBD: Tensor, *rest: Any) -> tuple[Tensor, Carry]:
        t_T11 = torch.arange(len(x_TBD), dtype=x_TBD.dtype).view(-1, 1, 1)
        return self.loop(x_TBD + 0.01 * t_T11, *rest)


class DetachedCarry(Sound):
    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return super().cell(x_BD, {"h": carry["h"].detach()})


class LastCarryDetached(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(*arguments)
        return y_TBH, {"h": last["h"].detach() + 0 * y_TBH[-1]}


class GrowingBackward(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(*arguments)
        passes = count(1)
        if y_TBH.requires_grad:
            y_TBH.register_hook(lambda grad: grad * next(passes))
        return y_TBH, last


class MeanOverLanes(Sound):
    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return super().cell(x_BD - x_BD.mean(0), carry)


class NumberedLanes(Sound):
    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return super().cell(x_BD + torch.arange(len(x_BD)).unsqueeze(1), carry)


class StartsAtOne(Sound):
    def initial(self) -> Carry:
        return {name: torch.ones_like(value) for name, value in super().initial().items()}


class StartNotLearned(Sound):
    def initial(self) -> Carry:
        return {name: value.detach() for name, value in super().initial().items()}


class Hidden(Sound):
    calls = 0

    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(*arguments)
        self.calls += 1
        return y_TBH + 1e-12 * self.calls, last


class WritesIntoTheCarry(Sound):
    def fast_scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        result = self.loop(x_TBD, reset_TB, {"h": carry["h"].clone()})
        carry["h"].detach().copy_(result[1]["h"].detach())
        return result


class StepsElsewhere(Sound):
    """What it prepares for many steps forgets some of the carry."""

    def stepper(self) -> Step:
        step = super().stepper()
        return lambda x_BD, reset_B, carry: step(x_BD, reset_B, {"h": 0.5 * carry["h"]})


class StepsInPlace(Sound):
    """Its step overwrites a carry that it was not given."""

    def step(self, x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self._reset_and_step(x_BD, reset_B, carry)

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        y_BH, after = super().fast_step(x_BD, carry)
        return y_BH, {"h": carry["h"].copy_(after["h"])}


class StepHandsOutItsCarry(Sound):
    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.cell(x_BD, carry)


class OutputIsTheCarry(Sound):
    def fast_scan(self, *arguments: Any) -> tuple[Tensor, Carry]:
        y_TBH, _ = self.loop(*arguments)
        return y_TBH, {"h": y_TBH[-1]}


class CarryHandedBack(Sound):
    """Memory that only a reset changes, so that without one the argument itself is returned."""

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return super().cell(x_BD, carry)[0], carry

    def fast_scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        y_TBH, last = self.loop(x_TBD, reset_TB, carry)
        return y_TBH, last if reset_TB.any() else carry


class AssumesLayout(Sound):
    def fast_scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        T, B, D = x_TBD.shape
        return self.loop(x_TBD.as_strided((T, B, D), (B * D, D, 1)), reset_TB, carry)


class Apart(Sound):
    """h' = tanh(W x + u h), each unit by itself, with traces: nothing is wrong with it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.w_hh = nn.Parameter(self.w_hh.detach()[0].clone())

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = torch.tanh(x_BD @ self.w_ih.t() + carry["h"] * self.w_hh)
        return h_BH, {"h": h_BH}

    def advance(self, state: State, sums: Mapping[str, Tensor]) -> State:
        (h,), (w,), (u,) = state, sums["w"].unbind(-2), sums["u"].unbind(-2)
        return (torch.tanh(w + h * u),)

    def elementwise(self) -> dict[str, Elementwise]:
        parameters = {"w": self.w_ih.unsqueeze(0), "u": self.w_hh.unsqueeze(0)}
        return {"h": Elementwise(parameters, self.advance, (self.initial()["h"],))}

    def elementwise_runs(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        y_TBH, _ = self.loop(x_TBD, reset_TB, carry)
        return {"h": Run(x_TBD, (y_TBH,), (carry["h"],))}


class OtherTraces(Apart):
    def advance(self, state: State, sums: Mapping[str, Tensor]) -> State:
        return super().advance(state, {**sums, "u": sums["u"].detach()})


class TracesOfNoRun(Apart):
    def elementwise_runs(self, *arguments: Any) -> dict[str, Run]:
        return {}


class TracesWithoutAdvance(Apart):
    def advance(self, h: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
        return sums["v"]


class GlobalSeed(Sound):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.w_ih = nn.Parameter(torch.randn_like(self.w_ih))


class TakesAnything(Sound):
    def _check(self, *arguments: Any) -> None:
        pass


class Raises(Sound):
    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        raise RuntimeError("out\nof order")


BROKEN: Mapping[type[Controller], set[str]] = {
    NarrowOutput: {"shapes"},
    ForgottenCarry: {"shapes"},
    Raises: {"shapes"},
    LateReset: {"scan is the loop", "reset cuts", "reset is a start"},
    NoReset: {"reset cuts", "reset is a start"},
    NoCuts: {"cuts are detached"},
    OtherStep: {"steps are the scan"},
    OtherWithoutGradient: {"acting is learning"},
    Rounded: {"... in float32"},
    WrongWhereWide: {"... at any width"},
    Clock: {"split is the whole", "steps are the scan"},
    DetachedCarry: {"finite differences"},
    LastCarryDetached: {"scan is the loop", "parts have gradients", "split is the whole"},
    GrowingBackward: {"backward repeats"},
    MeanOverLanes: {"lanes are apart"},
    NumberedLanes: {"lanes permute"},
    StartsAtOne: {"initial carry"},
    Hidden: {"nothing is hidden"},
    WritesIntoTheCarry: {"nothing is touched"},
    StepsElsewhere: {"prepared steps"},
    StepsInPlace: {"nothing is given away"},
    StepHandsOutItsCarry: {"nothing is given away"},
    OutputIsTheCarry: {"nothing is touched"},
    CarryHandedBack: {"nothing is touched"},
    AssumesLayout: {"memory layout"},
    OtherTraces: {"traces are the past"},
    TracesOfNoRun: {"traces are the past"},
    TracesWithoutAdvance: {"traces are the past"},
    GlobalSeed: {"seed"},
    TakesAnything: {"wrong arguments"},
}


def builder(kind: type[Controller], start: str = "zero") -> Build:
    settings = ControllerSettings(hidden_size=6, initial_carry=start)  # type: ignore[arg-type]
    return lambda input_size, generator: kind(input_size, settings, 10, generator)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("kind", [Sound, Apart], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("start", ["zero", "learned"])
def test_a_sound_controller_passes_every_check(kind: type[Controller], start: str) -> None:
    assert [finding for finding in findings(builder(kind, start)) if not finding.passed] == []


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_found(kind: type[Controller]) -> None:
    failed = {finding.name for finding in findings(builder(kind)) if not finding.passed}
    assert failed >= BROKEN[kind]


def test_a_start_that_is_said_to_be_learned_and_is_not_is_found() -> None:
    failed = {finding.name for finding in findings(builder(StartNotLearned, "learned")) if not finding.passed}
    assert "initial carry" in failed


def test_every_check_has_a_controller_that_fails_it() -> None:
    assert set().union(*BROKEN.values()) == {check.name for check in CHECKS}


def test_a_failing_check_says_where() -> None:
    (finding,) = (finding for finding in findings(builder(OtherStep)) if not finding.passed)
    assert finding.error == pytest.approx(1e-8, rel=0.9)
    assert finding.detail.startswith("output, step by step")


def test_an_exception_is_one_sentence_and_ends_the_checks() -> None:
    (finding,) = findings(builder(Raises))
    assert finding.detail == "it raised RuntimeError: out of order"
