"""Devices: which there are, what is said of them, and how data get there. None but a CPU is needed."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.normalizer import Normalizer
from mneme.learner import LearnerSettings, remarks, resolve_device, transfer

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_auto_is_cuda_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto") == (CUDA if there else CPU)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_may_be_named_by_its_number() -> None:
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"learner.device is 'cuda:2' but this machine has 2 usable GPUs, .* or auto"):
        resolve_device("cuda:2")


def test_mps_is_taken_where_it_is_and_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == MPS
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="learner.device is 'mps' but this machine has no Metal GPU; use auto or cpu"):
        resolve_device("mps")


@pytest.mark.parametrize("name", ["cpus", "meta", "xpu", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"learner.device is '{name}'; use auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


@pytest.mark.parametrize("kind", ["gru", "mamba", "mamba2", "pseudo_mamba", "mingru"])
def test_mps_falls_back_to_torch_and_says_so(kind: str) -> None:
    controller = build_controller(ControllerSettings(kind=kind, hidden_size=8), 3, 10, Generator().manual_seed(0))
    (said,) = remarks(LearnerSettings(device="mps"), MPS, controller)
    assert said == "learner.device is mps, where scans run in the backend torch; nobody has measured it yet"


@pytest.mark.parametrize(
    ("precision", "device", "capabilities", "said"),
    [
        ("float32", CPU, {}, ()),
        ("tf32", CPU, {}, ("learner.precision is tf32, which NVIDIA's GPUs have; on cpu it is float32",)),
        ("tf32", CUDA, {}, ()),
        ("bf16", CPU, {"amx_bf16": True}, ()),
        ("bf16", CPU, {"avx512_bf16": True}, ()),
        ("bf16", CPU, {"bf16": True}, ()),
        (
            "bf16",
            CPU,
            {"avx512_f": True, "amx_bf16": False},
            ("learner.precision is bf16, but this machine's processor",),
        ),
        ("bf16", CUDA, {}, ("learner.precision is bf16, but this machine's GPU has no instructions for it",)),
    ],
)
def test_what_the_precision_comes_to_is_said_where_it_may_surprise(
    precision: Any, device: torch.device, capabilities: dict[str, bool], said: tuple[str, ...], monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    controller = build_controller(ControllerSettings(kind="gru", hidden_size=8), 3, 10, Generator().manual_seed(0))
    found = remarks(LearnerSettings(precision=precision), device, controller)
    assert len(found) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(found, said, strict=True))


def test_statistics_stay_where_float64_is() -> None:
    """Of a device without it nothing more than its name is needed."""
    normalizer = Normalizer(3)
    normalizer._apply(lambda x: SimpleNamespace(device=MPS))  # type: ignore[arg-type, return-value]
    normalizer.update(torch.ones(4, 3))
    assert normalizer.mean.dtype == torch.float64
    assert normalizer.to("meta").mean.device.type == "meta"


def test_what_is_staged_for_a_cpu_is_sent_as_it_is() -> None:
    room = transfer.staging((2, 3), np.dtype(np.float32), CPU)
    room.numpy()[:] = 7
    assert transfer.sent(room, CPU) is room


class Staged:
    """Stands for pinned memory, and for its copy on a GPU; it writes down what is done with it."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def to(self, device: torch.device, non_blocking: bool) -> "Staged":
        self.done.append(f"copy to {device}" + " without waiting" * non_blocking)
        return self

    def record_stream(self, stream: "Stream") -> None:
        self.done.append(f"keep for {stream.name}")


class Stream:
    def __init__(self, name: str, done: list[str]) -> None:
        self.name, self.done = name, done

    def wait_stream(self, other: "Stream") -> None:
        self.done.append(f"{self.name} waits for {other.name}")


def test_what_is_staged_for_a_gpu_is_copied_beside_the_work_and_waited_for_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    work, aside = Stream("work", done), Stream("aside", done)

    @contextmanager
    def on(stream: Stream) -> Any:
        done.append(f"on {stream.name}")
        yield
        done.append(f"off {stream.name}")

    monkeypatch.setattr(transfer, "_stream", lambda device: aside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "stream", on)
    transfer.sent(Staged(done), CUDA)  # type: ignore[arg-type]
    assert done == ["on aside", "copy to cuda without waiting", "off aside", "work waits for aside", "keep for work"]


def test_memory_staged_for_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def empty_like(room: Tensor, pin_memory: bool) -> Tensor:
        asked.append((tuple(room.shape), room.dtype, pin_memory))
        return room

    monkeypatch.setattr(torch, "empty_like", empty_like)
    transfer.staging((2, 3), np.dtype(np.int64), CUDA)
    assert asked == [((2, 3), torch.int64, True)]
