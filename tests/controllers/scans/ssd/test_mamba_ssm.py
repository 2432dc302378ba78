"""mamba_ssm's kernels for Mamba-2: the same as ours, and not chosen where they are not."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Generator

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.scans import backends
from mneme.controllers.scans.ssd.mamba_ssm import mamba_ssm_scan

GPU = torch.device("cuda")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_installed", lambda backend: backend == "mamba_ssm")
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)


def test_more_chunks_than_a_launch_has_room_for_are_refused_in_one_sentence() -> None:
    T, B = 64, 65536
    x, dt, write, h = (torch.zeros(1).expand(*shape) for shape in ((T, B, 1, 1), (T, B, 1), (T, B, 1), (B, 1, 1, 1)))
    reset = torch.zeros(1, dtype=torch.bool).expand(T, B)
    with pytest.raises(
        ValueError, match="65536 lanes of 64 steps are 65536 chunks of 64 steps, but .* take 65535; use"
    ):
        mamba_ssm_scan(x, dt, torch.ones(1), write, write, reset, h, 16)


def test_the_kernels_give_our_outputs_last_states_and_gradients() -> None:
    if not all(map(find_spec, ("mamba_ssm", "einops", "triton"))):
        pytest.skip("mamba_ssm, einops or triton is not installed; `make setup` installs them on Linux")
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.controllers.scans.ssd.run_mamba_ssm"],
        env={**os.environ, "TRITON_F32_DEFAULT": "ieee", **interpret},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 5
    assert all(report["error"] < 2e-5 for report in reports), reports


@pytest.mark.parametrize("kind", ["mamba2", "pseudo_mamba"])
def test_they_are_chosen_where_they_round_as_torch_may(
    installed: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    controller = build_controller(ControllerSettings(kind=kind, num_layers=2), 3, 10, Generator().manual_seed(0))
    assert controller.backend_on(torch.device("cpu")) == "torch"
    assert controller.backend_on(GPU) == "torch"  # TF32 was not allowed
    assert controller.bfloat16().backend_on(GPU) == "mamba_ssm"
    assert controller.double().backend_on(GPU) == "torch"
    controller.float()
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32x3")
    assert controller.backend_on(GPU) == "mamba_ssm"
    monkeypatch.delenv("TRITON_F32_DEFAULT")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert controller.backend_on(GPU) == "mamba_ssm"


def test_who_names_them_gets_them_in_float32(installed: None) -> None:
    settings = ControllerSettings(kind="mamba2", backend="mamba_ssm")
    controller = build_controller(settings, 3, 10, Generator().manual_seed(0))
    assert controller.backend_on(GPU) == "mamba_ssm"
    assert controller.double().backend_on(GPU) == "torch"


@pytest.mark.parametrize("kind", ["mamba2", "pseudo_mamba"])
def test_a_learned_start_is_not_theirs(installed: None, kind: str) -> None:
    settings = ControllerSettings(kind=kind, initial_carry="learned")
    assert build_controller(settings, 3, 10, Generator().manual_seed(0)).bfloat16().backend_on(GPU) == "torch"
    with pytest.raises(ValueError, match="backend is 'mamba_ssm'; it cannot start from a learned carry"):
        ControllerSettings(kind=kind, initial_carry="learned", backend="mamba_ssm")


def test_a_query_made_of_the_state_goes_step_by_step(installed: None) -> None:
    settings = ControllerSettings(kind="pseudo_mamba", query="state")
    assert build_controller(settings, 3, 10, Generator().manual_seed(0)).bfloat16().backend_on(GPU) == "torch"


@pytest.mark.parametrize("missing", ["mamba_ssm", "einops", "triton"])
def test_they_need_what_their_package_imports(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda package: None if package == missing else object())
    installed = backends._installed.__wrapped__  # not what was found before
    assert not installed("mamba_ssm") and installed("triton") == (missing != "triton")


def test_importing_them_leaves_the_package_to_others() -> None:
    if not all(map(find_spec, ("mamba_ssm", "einops", "triton"))):
        pytest.skip("mamba_ssm, einops or triton is not installed; `make setup` installs them on Linux")
    program = (
        "import sys; from mneme.controllers.scans.ssd.mamba_ssm import _kernels; "
        "assert _kernels() is _kernels() and callable(_kernels().mamba_chunk_scan_combined); "
        "assert 'mamba_ssm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
