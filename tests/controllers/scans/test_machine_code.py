"""What the compiled scans share: exact enough functions, machine code that follows its sources."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mneme.controllers.scans import machine_code
from mneme.controllers.scans.machine_code import exp2, sigmoid, softplus


@machine_code.compiled
def each(x, powers, gates, logs):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        powers[i], gates[i], logs[i] = exp2(x[i]), sigmoid(x[i]), softplus(x[i])


def all_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    powers, gates, logs = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    each(x, powers, gates, logs)
    return powers, gates, logs


@pytest.mark.parametrize("dtype,tolerance", [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_powers_sigmoids_and_logarithms_are_exact_to_a_few_units_in_the_last_place(
    dtype: type, tolerance: float
) -> None:
    x = np.linspace(-125.9, 126.9, 100_001).astype(dtype)
    powers, gates, logs = all_of(x)
    np.testing.assert_allclose(powers, np.exp2(x.astype(np.float64)), rtol=tolerance)
    small = np.abs(x) < 20
    np.testing.assert_allclose(gates[small], 1 / (1 + np.exp(-x[small].astype(np.float64))), rtol=10 * tolerance)
    np.testing.assert_allclose(logs[small], np.logaddexp(0, x[small].astype(np.float64)), rtol=10 * tolerance)


def test_extremes_neither_overflow_nor_hide_what_is_not_a_number() -> None:
    powers, gates, logs = all_of(np.array([-1e30, -np.inf, 1e30, np.nan], np.float32))
    assert (powers[:2] <= 2.0**-126).all() and np.isfinite(powers[2]) and powers[2] >= 2.0**126
    np.testing.assert_allclose(gates[:3], [0, 0, 1], atol=1e-37)
    np.testing.assert_allclose(logs[:3], [0, 0, 1e30], atol=1e-37)
    assert np.isnan(powers[3]) and np.isnan(gates[3]) and np.isnan(logs[3])


def test_changed_sources_have_another_folder_for_their_machine_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for name in ("machine_code.py", "gru/other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(machine_code, "__file__", str(tmp_path / "machine_code.py"))
    folder = machine_code.machine_code_folder.__wrapped__
    first = folder()
    assert first is not None and Path(first).is_dir() and first.startswith(str(tmp_path))
    assert folder() == first
    (tmp_path / "gru/other.py").write_text("2")  # of which kernels may hold constants
    assert folder() != first


def test_another_place_may_be_named_and_has_such_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    folder = machine_code.machine_code_folder.__wrapped__()
    assert folder is not None and Path(folder).parent == tmp_path / "named" / "mneme"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert machine_code.machine_code_folder.__wrapped__() is None


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert machine_code.machine_code_folder.__wrapped__() is None


@machine_code.kernel
def halve(x):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        x[i] *= x.dtype.type(0.5)


@pytest.mark.parametrize("already", [False, True])
def test_a_kernel_flushes_what_is_too_small_and_leaves_the_thread_as_it_was(already: bool) -> None:
    x, smallest = np.array([2.0**-126, 1.0], np.float32), np.finfo(np.float64).tiny
    torch.set_flush_denormal(already)
    try:
        halve(x)
        assert x.tolist() == [0.0, 0.5]
        assert (float(smallest) / 2 == 0) == already
    finally:
        torch.set_flush_denormal(False)


def test_damaged_machine_code_is_made_again(tmp_path: Path) -> None:
    run = "import numpy, tests.controllers.scans.test_machine_code as t; x = numpy.ones(3); t.halve(x); print(x)"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for damage in ("", "not machine code", ""):
        assert subprocess.check_output([sys.executable, "-c", run], env=environment) == b"[0.5 0.5 0.5]\n"
        kept = list(tmp_path.rglob("*halve*.nb?"))
        assert {path.suffix for path in kept} == {".nbi", ".nbc"}
        for path in kept:
            assert path.read_bytes()
            path.write_text(damage)


def test_machine_code_that_a_full_disk_cannot_take_runs_all_the_same(tmp_path: Path) -> None:
    run = (
        "import resource, numpy, tests.controllers.scans.test_machine_code as t; x = numpy.ones(3);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); t.halve(x); print(x)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert subprocess.check_output([sys.executable, "-c", run], env=environment) == b"[0.5 0.5 0.5]\n"
    assert not [path for path in tmp_path.rglob("*halve*") if path.is_file()]


def test_without_a_folder_nothing_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine_code, "machine_code_folder", lambda: None)
    monkeypatch.setattr(machine_code, "compiled", lambda function: function)

    def unreadable() -> None:
        raise EOFError

    with pytest.raises(EOFError):
        machine_code.kernel(unreadable)()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_importing_it_changes_nothing_for_other_users_of_numba() -> None:
    program = (
        "from numba import config; before = {k: v for k, v in vars(config).items() if k.isupper()};"
        "import mneme.controllers.scans.gru.numba, mneme.controllers.scans.slots.numba;"
        "assert before == {k: v for k, v in vars(config).items() if k.isupper()}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
