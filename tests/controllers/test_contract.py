"""What every controller must be, written once and run over the registry, with zero and learned start."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from controllers import CONTROLLERS, Carry, Controller, ControllerSettings, build_controller

INPUT, HIDDEN, LANES = 5, 6, 4
LENGTHS = (1, 2, 7, 33)
EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


CASES = [
    (kind, start, layers) for kind in CONTROLLERS for start, layers in (("zero", 1), ("learned", 1), ("learned", 2))
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def controller(request: pytest.FixtureRequest) -> Controller:
    """Float64, every parameter moved off its initial value, so that a learned initial carry is not zero."""
    return make(*request.param).double()


def make(kind: str, start: str, layers: int = 1) -> Controller:
    generator = Generator().manual_seed(3)
    settings = ControllerSettings(kind=kind, hidden_size=HIDDEN, initial_carry=start, layers=layers)  # type: ignore[arg-type]
    built = build_controller(settings, INPUT, 10, generator)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return built


def draw(
    controller: Controller, steps: int, seed: int = 0, resets: float = 0.3, lanes: int = LANES
) -> tuple[Tensor, Tensor, Carry]:
    """Inputs, reset flags and a non-zero carry, all requiring gradients where they can."""
    generator = Generator().manual_seed(seed)
    start = {name: value.detach() for name, value in controller.initial_carry(lanes).items()}
    dtype = next(controller.parameters()).dtype
    x = torch.randn(steps, lanes, INPUT, generator=generator).to(dtype)
    reset = torch.rand(steps, lanes, generator=generator) < resets
    carry = {k: (v + torch.randn(v.shape, generator=generator).to(dtype)).requires_grad_() for k, v in start.items()}
    return x.requires_grad_(), reset, carry


def loss_of(y: Tensor, carry: Carry) -> Tensor:
    """A scalar that weighs every output and the final carry differently."""
    return sum(
        (value * torch.arange(1, value.numel() + 1, dtype=value.dtype).sin().view_as(value)).sum()
        for value in (y, *carry.values())
    )  # type: ignore[return-value]


def outputs_and_gradients(
    run: Callable[[Tensor, Tensor, Carry], tuple[Tensor, Carry]], controller: Controller, steps: int
) -> dict[str, Tensor]:
    x, reset, carry = draw(controller, steps)
    y, last = run(x, reset, carry)
    inputs = {"x": x, **{f"carry {k}": v for k, v in carry.items()}, **dict(controller.named_parameters())}
    grads = torch.autograd.grad(loss_of(y, last), list(inputs.values()), materialize_grads=True)
    return {
        "y": y,
        **{f"last {k}": v for k, v in last.items()},
        **dict(zip(map("d{}".format, inputs), grads, strict=True)),
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("steps", LENGTHS)
def test_the_scan_matches_the_slow_reference_in_float64(controller: Controller, steps: int) -> None:
    expected = outputs_and_gradients(controller.reference_scan, controller, steps)
    assert_same(outputs_and_gradients(controller.scan, controller, steps), expected, **TIGHT)


@pytest.mark.parametrize("steps", LENGTHS)
def test_the_scan_matches_the_slow_reference_in_float32(controller: Controller, steps: int) -> None:
    controller = controller.float()
    expected = outputs_and_gradients(controller.reference_scan, controller, steps)
    assert_same(outputs_and_gradients(controller.scan, controller, steps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lanes", [1, 100, 600])
def test_the_scan_matches_the_slow_reference_at_any_width(controller: Controller, lanes: int) -> None:
    x, reset, carry = draw(controller, 9, lanes=lanes)
    y, last = controller.scan(x, reset, carry)
    slow_y, slow_last = controller.reference_scan(x, reset, carry)
    assert_same({"y": y, **last}, {"y": slow_y, **slow_last}, **TIGHT)
    inputs = [x, *carry.values(), *controller.parameters()]
    fast = torch.autograd.grad(loss_of(y, last), inputs, materialize_grads=True)
    slow = torch.autograd.grad(loss_of(slow_y, slow_last), inputs, materialize_grads=True)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", LENGTHS)
def test_the_scan_without_gradients_gives_the_same_values(controller: Controller, steps: int) -> None:
    x, reset, carry = draw(controller, steps)
    y, last = controller.scan(x, reset, carry)
    with torch.no_grad():
        lean_y, lean_last = controller.scan(x, reset, carry)
    assert_same({"y": lean_y, **lean_last}, {"y": y, **last}, **TIGHT)


def test_the_scan_is_the_repeated_step(controller: Controller) -> None:
    x, reset, carry = draw(controller, 33)
    y, last = controller.scan(x, reset, carry)
    outputs = []
    for t in range(33):
        y_t, carry = controller.step(x[t], reset[t], carry)
        outputs.append(y_t)
    assert_same({"y": torch.stack(outputs), **carry}, {"y": y, **last}, **TIGHT)


@pytest.mark.parametrize("cuts", [(1,), (32,), (5, 6, 20), (11, 22)])
def test_a_scan_over_a_split_is_the_scan_over_the_whole(controller: Controller, cuts: tuple[int, ...]) -> None:
    def split(x: Tensor, reset: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        outputs = []
        for x_part, reset_part in zip(x.tensor_split(cuts), reset.tensor_split(cuts), strict=True):
            y, carry = controller.scan(x_part, reset_part, carry)
            outputs.append(y)
        return torch.cat(outputs), carry

    expected = outputs_and_gradients(controller.scan, controller, 33)
    assert_same(outputs_and_gradients(split, controller, 33), expected, **TIGHT)


@pytest.mark.parametrize("at", [0, 1, 6])
def test_a_reset_isolates_what_came_before(controller: Controller, at: int) -> None:
    x, reset, carry = draw(controller, 13, resets=0.0)
    reset[at, 1] = True
    y, last = controller.scan(x, reset, carry)
    after = loss_of(y[at:, 1], {name: value[1] for name, value in last.items()})
    dx, *dcarry = torch.autograd.grad(after, [x, *carry.values()], materialize_grads=True)
    assert torch.count_nonzero(dx[:at]) == 0
    assert torch.count_nonzero(dx[at:, 1]) > dx[at:, 1].numel() / 2  # all but where a ReLU is shut
    assert all(torch.count_nonzero(grad) == 0 for grad in dcarry)
    fresh_y, fresh_last = controller.scan(x[at:], torch.zeros_like(reset[at:]), controller.initial_carry(LANES))
    assert_same(
        {"y": y[at:, 1], **{k: v[1] for k, v in last.items()}},
        {"y": fresh_y[:, 1], **{k: v[1] for k, v in fresh_last.items()}},
        **TIGHT,
    )


def test_a_reset_forgets_even_a_carry_that_is_not_finite(controller: Controller) -> None:
    x, reset, carry = draw(controller, 3, resets=0.0)
    poisoned = {name: torch.full_like(value, torch.nan) for name, value in carry.items()}
    y, last = controller.scan(x, reset.index_fill(0, torch.tensor([0]), True), poisoned)
    assert all(value.isfinite().all() for value in (y, *last.values()))


def test_gradients_match_finite_differences(controller: Controller) -> None:
    x, reset, carry = draw(controller, 5, lanes=2)
    names, parameters = list(carry), list(controller.parameters())

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, last = controller.scan(x, reset, dict(zip(names, rest, strict=False)))
        return y, *last.values()

    assert torch.autograd.gradcheck(run, (x, *carry.values(), *parameters))


def test_a_learned_initial_carry_receives_gradient_and_a_zero_one_stays_zero(controller: Controller) -> None:
    start = controller.initial_carry(LANES)
    learned = {name for name, _ in controller.named_parameters() if name.rpartition(".")[2].startswith("initial_")}
    if not learned:
        assert all(torch.count_nonzero(value) == 0 for value in start.values())
        return
    x, reset, _ = draw(controller, 5, resets=0.0)
    y, _ = controller.scan(x, reset, start)
    for grad in torch.autograd.grad(y.sum(), [controller.get_parameter(name) for name in sorted(learned)]):
        assert torch.count_nonzero(grad) == grad.numel()


def test_permuting_the_lanes_permutes_the_result(controller: Controller) -> None:
    x, reset, carry = draw(controller, 9)
    order = torch.tensor([2, 0, 3, 1])
    y, last = controller.scan(x, reset, carry)
    y_p, last_p = controller.scan(x[:, order], reset[:, order], {k: v[order] for k, v in carry.items()})
    assert_same({"y": y_p, **last_p}, {"y": y[:, order], **{k: v[order] for k, v in last.items()}}, **TIGHT)


@pytest.mark.parametrize("no_grad", [True, False])
def test_nothing_passed_in_is_modified_or_aliased(controller: Controller, no_grad: bool) -> None:
    x, reset, carry = draw(controller, 7)
    before = [value.detach().clone() for value in (x, reset, *carry.values(), *controller.parameters())]
    with torch.set_grad_enabled(not no_grad):
        y, last = controller.scan(x, reset, carry)
    if not no_grad:
        loss_of(y, last).backward()
    y_before = y.detach().clone()
    for value in last.values():
        value.detach().zero_()
    torch.testing.assert_close([x, reset, *carry.values(), *controller.parameters()], before, **EXACT)
    torch.testing.assert_close(y, y_before, **EXACT)


def test_a_second_backward_through_the_same_scan_gives_the_same_gradients(controller: Controller) -> None:
    x, reset, carry = draw(controller, 7)
    loss = loss_of(*controller.scan(x, reset, carry))
    first = torch.autograd.grad(loss, list(controller.parameters()), retain_graph=True, materialize_grads=True)
    second = torch.autograd.grad(loss, list(controller.parameters()), materialize_grads=True)
    torch.testing.assert_close(first, second, **EXACT)


def test_the_output_alone_or_the_carry_alone_can_be_differentiated(controller: Controller) -> None:
    x, reset, carry = draw(controller, 7)
    for pick in (lambda y, last: y.sum(), lambda y, last: sum(v.sum() for v in last.values()) + 0 * y.sum()):
        fast = torch.autograd.grad(pick(*controller.scan(x, reset, carry)), x)
        slow = torch.autograd.grad(pick(*controller.reference_scan(x, reset, carry)), x)
        torch.testing.assert_close(fast, slow, **TIGHT)


def test_inputs_may_be_strided_views(controller: Controller) -> None:
    x, reset, carry = draw(controller, 7)
    lanes_first = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    y, _ = controller.scan(lanes_first, reset.t().contiguous().t(), carry)
    torch.testing.assert_close(y, controller.scan(x, reset, carry)[0], **TIGHT)


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_seed_gives_the_same_weights_whatever_the_global_generator(kind: str) -> None:
    torch.manual_seed(1)
    first = make(kind, "learned").state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = make(kind, "learned").state_dict()
    assert_same(dict(first), dict(second), **EXACT)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_arguments_get_one_sentence(controller: Controller) -> None:
    x, reset, carry = draw(controller, 3)
    with pytest.raises(ValueError, match=r"has shape \[3, 4, 2\]; it must be \[T, B, 5\]"):
        controller.scan(x[..., :2], reset, carry)
    with pytest.raises(ValueError, match="0 time steps"):
        controller.scan(x[:0], reset[:0], carry)
    with pytest.raises(ValueError, match=r"reset flags are torch.bool of shape \[2, 4\].*\[3, 4\]"):
        controller.scan(x, reset[:2], carry)
    with pytest.raises(ValueError, match=r"reset flags are torch.float32.*torch.bool"):
        controller.scan(x, reset.float(), carry)
    with pytest.raises(ValueError, match=r"the carry holds .*'stranger'.*initial_carry"):
        controller.scan(x, reset, carry | {"stranger": x[0]})
    for name in carry:
        with pytest.raises(ValueError, match=r"the carry holds .*needs exactly"):
            controller.scan(x, reset, {k: v for k, v in carry.items() if k != name})
        with pytest.raises(ValueError, match=rf"carry '{name}' is torch.float64 of shape \[3,.*\[4,"):
            controller.scan(x, reset, carry | {name: carry[name][:3]})
        with pytest.raises(ValueError, match=rf"carry '{name}' is torch.float32.*must be torch.float64"):
            controller.scan(x, reset, carry | {name: carry[name].float()})
