"""Products through oneDNN, forced on whatever processor is at hand, beside torch's own in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mneme.controllers import CONTROLLERS, ControllerSettings, build_controller, products
from mneme.controllers.products import Linear, linear, product

pytestmark = pytest.mark.skipif(not products.one_dnn_works(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """oneDNN for everything, however small; collects how many rows each of its products had."""
    rows: list[int] = []
    one_dnn = torch.ops.mkldnn._linear_pointwise

    def counting(x: Tensor, *rest: object) -> Tensor:
        rows.append(len(x))
        return one_dnn(x, *rest)

    monkeypatch.setattr(products, "_mkl_is_held_back", lambda: True)
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counting)
    yield rows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def layouts(rows: int, columns: int, seed: int) -> dict[str, Tensor]:
    """The same kind of matrix, with its numbers lying in different ways."""
    return {
        "rows": random(rows, columns, seed=seed),
        "columns": random(columns, rows, seed=seed).t(),
        "part of rows": random(rows, columns + 3, seed=seed)[:, 1 : columns + 1],
        "part of columns": random(columns + 3, rows, seed=seed)[1 : columns + 1].t(),
        "every other": random(2 * rows, 2 * columns, seed=seed)[::2, ::2],
        "one row again and again": random(1, columns, seed=seed).expand(rows, -1),
        "one number": random(1, 1, seed=seed).expand(rows, columns),
    }


@pytest.mark.parametrize("b", layouts(1, 1, 0))
@pytest.mark.parametrize("a", layouts(1, 1, 0))
@pytest.mark.parametrize("rows,inputs,outputs", [(37, 5, 7), (1, 5, 7), (37, 1, 7), (37, 5, 1)])
def test_a_product_is_the_product_however_its_factors_lie(
    rows: int, inputs: int, outputs: int, a: str, b: str, calls: list[int]
) -> None:
    a_RM, b_MN = layouts(rows, inputs, 1)[a], layouts(inputs, outputs, 2)[b]
    expected = a_RM.double() @ b_MN.double()
    torch.testing.assert_close(product(a_RM, b_MN).double(), expected, rtol=1e-5, atol=1e-5)
    assert calls == [rows]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(9, 5), (4, 9, 5), (9, 4, 5)])
def test_a_layer_is_torchs_with_all_its_gradients(shape: tuple[int, ...], bias: bool, calls: list[int]) -> None:
    x = random(*shape).transpose(0, -2) if shape == (9, 4, 5) else random(*shape)
    values = [x, random(7, 5, seed=1), *([random(7, seed=2)] if bias else [])]
    ours = [value.clone().requires_grad_() for value in values]
    theirs = [value.double().requires_grad_() for value in values]
    y, expected = linear(*ours), F.linear(*theirs)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for slope in (random(*y.shape, seed=3), torch.ones(()).expand(y.shape)):
        gradients = torch.autograd.grad(y, ours, slope, retain_graph=True)
        for gradient, right in zip(
            gradients, torch.autograd.grad(expected, theirs, slope.double(), retain_graph=True), strict=True
        ):
            torch.testing.assert_close(gradient.double(), right, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1 + 2 * 2
    with torch.no_grad():
        torch.testing.assert_close(linear(*ours), y, rtol=0, atol=0)


@pytest.mark.parametrize("bias", ["every other", "one number", "a column"])
def test_a_bias_is_read_where_it_lies(bias: str, calls: list[int]) -> None:
    b = {"every other": random(14)[::2], "one number": random(1).expand(7), "a column": random(7, 2)[:, 0]}[bias]
    x, w = random(9, 5), random(7, 5, seed=1)
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b), rtol=1e-5, atol=1e-5)
    assert calls


def test_the_gradient_has_a_gradient(calls: list[int]) -> None:
    found = []
    for layer in (linear, F.linear):
        values = [random(9, 5), random(7, 5, seed=1), random(7, seed=2)]
        x, w, b = inputs = [value.requires_grad_() for value in values]
        (slope,) = torch.autograd.grad(layer(x, w, b).tanh().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), inputs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert calls


@pytest.mark.parametrize(
    "x,w,b", [((9, 5), (7, 4), None), ((9, 5), (1, 7, 5), None), ((9, 5), (7, 5), (6,)), ((), (7, 5), None)]
)
def test_what_does_not_fit_is_refused_by_torch(
    x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None, calls: list[int]
) -> None:
    with pytest.raises(RuntimeError):
        linear(random(*x), random(*w), None if b is None else random(*b))
    assert not calls


@pytest.mark.parametrize("w,b", [((5,), None), ((7, 5), (1,)), ((7, 5), (9, 7))])
def test_what_torch_takes_besides_is_torchs(w: tuple[int, ...], b: tuple[int, ...] | None, calls: list[int]) -> None:
    x, w_NM, b_N = random(9, 5), random(*w), None if b is None else random(*b)
    torch.testing.assert_close(linear(x, w_NM, b_N), F.linear(x, w_NM, b_N), rtol=0, atol=0)
    assert not calls


def test_what_no_gradient_needs_may_change() -> None:
    x, w = random(9, 5), random(7, 5, seed=1)
    x_graded, w_graded = x.clone().requires_grad_(), w.clone().requires_grad_()
    of_x, of_w = linear(x_graded, w), linear(x, w_graded)
    with torch.no_grad():
        x_graded += 1
        w_graded += 1
    torch.testing.assert_close(torch.autograd.grad(of_x.sum(), x_graded)[0], w.sum(0).expand(9, 5))
    torch.testing.assert_close(torch.autograd.grad(of_w.sum(), w_graded)[0], x.sum(0).expand(7, 5))


def test_a_pytorch_without_one_dnn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> Tensor:
        raise RuntimeError("expected at most 5 arguments")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refuse)
    assert not products.one_dnn_works()


def test_what_needs_no_gradient_gets_none() -> None:
    x, w = random(9, 5), random(7, 5, seed=1).requires_grad_()
    assert not linear(x, w.detach()).requires_grad
    assert torch.autograd.grad(linear(x, w).sum(), w)[0].shape == w.shape


@pytest.mark.parametrize("why", ["float64", "autocast", "switched off", "no lanes", "small"])
def test_what_one_dnn_does_not_suit_is_torchs(why: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(5, 7)
    x = random(0 if why == "no lanes" else 9, 5)
    if why == "float64":
        layer, x = layer.double(), x.double()
    if why == "small":
        monkeypatch.setattr(products, "LEAST", 9 * 5 * 7 + 1)
    if why == "switched off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.autocast("cpu", enabled=why == "autocast"):
        y = layer(x)
        assert y.dtype == (torch.bfloat16 if why == "autocast" else x.dtype)
        torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
        if why != "autocast":
            product(x, layer.weight.t())
    assert not calls


@pytest.mark.parametrize("least", [1, 1000])
def test_a_product_keeps_its_type_where_autocast_is_on(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST", least)
    a_RM, b_MN = random(9, 5), random(5, 7)
    with torch.autocast("cpu"):
        actual = product(a_RM, b_MN)
    torch.testing.assert_close(actual, a_RM @ b_MN)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_compiled_recurrence_keeps_its_type_where_autocast_is_on(kind: str) -> None:
    controller = build_controller(ControllerSettings(kind=kind, hidden_size=4), 3, 5, Generator().manual_seed(0))
    x, reset = random(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    with torch.autocast("cpu"):
        actual, _ = controller.scan(x, reset, controller.initial_carry(2))
    torch.testing.assert_close(actual, controller.scan(x, reset, controller.initial_carry(2))[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_every_controller_is_what_it_is_with_torchs_products(
    kind: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = build_controller(ControllerSettings(kind=kind, hidden_size=32), 12, 16, Generator().manual_seed(0))
    x, reset = random(20, 3, 12, seed=1), torch.rand(20, 3, generator=Generator().manual_seed(2)) < 0.1

    def outputs_and_gradients() -> tuple[Tensor, ...]:
        inputs = [x.clone().requires_grad_(), *controller.parameters()]
        y, _ = controller.scan(inputs[0], reset, controller.initial_carry(3))
        gradients = torch.autograd.grad((y * random(*y.shape, seed=3)).sum(), inputs, allow_unused=True)
        return y, *(gradient for gradient in gradients if gradient is not None)

    with_one_dnn = outputs_and_gradients()
    assert calls
    monkeypatch.setattr(products, "_mkl_is_held_back", lambda: False)
    torch.testing.assert_close(with_one_dnn, outputs_and_gradients(), rtol=2e-4, atol=2e-5)
