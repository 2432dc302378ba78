"""Which implementation runs where."""

import pytest
import torch
from torch import Generator

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.scans import backends
from mneme.controllers.scans.backends import chosen_backend

INSTALLED = backends._installed.__wrapped__  # without what was found before
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_installed", lambda package: package == "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_takes_the_fastest_that_runs() -> None:
    assert chosen_backend("auto", CPU, ("triton", "torch")) == "torch"
    assert chosen_backend("auto", GPU, ("triton", "torch")) == "triton"
    assert chosen_backend("auto", GPU, ("mamba_ssm", "triton", "torch")) == "triton"  # the first is not installed
    assert chosen_backend("auto", GPU, ("mamba_ssm", "torch")) == "torch"


def test_a_name_is_taken_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "reference", "triton"):
        assert chosen_backend(name, GPU, ("triton", "torch")) == name
    assert chosen_backend("mamba_ssm", GPU, ("mamba_ssm", "torch")) == "torch"
    assert chosen_backend("triton", CPU, ("triton", "torch")) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen_backend("triton", CPU, ("triton", "torch")) == "triton"
    assert chosen_backend("auto", CPU, ("triton", "torch")) == "torch"  # the interpreter is for tests


def test_compiled_scans_are_for_float32_and_float64_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_installed", lambda package: package == "numba")
    offered = ("triton", "numba", "torch")
    assert chosen_backend("auto", CPU, offered) == chosen_backend("numba", CPU, offered) == "numba"
    assert chosen_backend("triton", CPU, offered) == "numba"
    assert chosen_backend("auto", CPU, offered, torch.float64) == "numba"
    assert chosen_backend("numba", GPU, offered) == "torch"
    for kind in ("mamba", "mamba_gru", "pseudo_mamba"):
        built = build_controller(ControllerSettings(kind=kind, hidden_size=4), 3, 5, Generator().manual_seed(0))
        assert built.backend_on(CPU) == "numba"
        assert built.bfloat16().backend_on(CPU) == "torch"


def test_a_numba_that_must_not_compile_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert chosen_backend("auto", CPU, ("triton", "numba", "torch")) == "torch"
    assert "NUMBA_DISABLE_JIT" in str(backends.obstacle("numba", CPU, torch.float32, forced=True))


def test_a_numba_that_cannot_be_imported_is_none_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("numba needs another numpy")

    monkeypatch.setattr(backends, "import_module", fail)
    with pytest.warns(UserWarning, match="numba cannot be imported, so scans are not compiled: numba needs another"):
        assert not INSTALLED("numba")


def test_a_backend_that_the_kind_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="backend is 'tritton'; mlp does not have that; choose one of auto, torch"):
        build_controller(ControllerSettings(kind="mlp", backend="tritton"), 3, 5, Generator())


def test_the_setting_reaches_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ControllerSettings(kind="gru", hidden_size=4, num_layers=2, backend="reference")
    stack = build_controller(settings, 3, 5, Generator().manual_seed(0))
    calls = []
    own = stack.reference_scan
    monkeypatch.setattr(stack, "reference_scan", lambda *args: calls.append(1) or own(*args))
    for layer in (stack, *stack.layers):  # type: ignore[misc]
        assert layer.backend_on(CPU) == "reference"
    stack.scan(torch.randn(2, 2, 3), torch.zeros(2, 2, dtype=torch.bool), stack.initial_carry(2))
    assert len(calls) == 1
