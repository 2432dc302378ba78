"""Scans are compiled before others need them, once, and the user is told."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import Generator

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.compilation import compile_ahead
from mneme.controllers.scans import machine_code

ACT = "torch.set_grad_enabled(False); built.step(torch.zeros(2, 3), torch.zeros(2).bool(), built.initial_carry(2))"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> list[str]:
    (tmp_path / "now").mkdir()
    (tmp_path / "now" / "code.nbi").touch()
    monkeypatch.setattr(machine_code, "machine_code_folder", lambda: str(tmp_path / "now"))
    return notes


def ahead(kind: str, backend: str = "auto") -> None:
    settings = ControllerSettings(kind=kind, hidden_size=4, backend=backend)
    compile_ahead(build_controller(settings, 3, 5, Generator().manual_seed(0)), kind)


def test_a_kind_is_compiled_once_and_said_to_be(told: list[str]) -> None:
    for kind in ("mamba", "mamba", "mamba_gru", "transformer"):
        ahead(kind)
    assert [sentence.split(" for")[0] for sentence in told] == [
        "compiling the scans of mamba",
        "compiling the scans of mamba_gru",
        "compiling the scans of transformer",  # of its steps alone
    ]


def test_machine_code_that_was_deleted_is_compiled_again_and_said_to_be(told: list[str], tmp_path: Path) -> None:
    ahead("mamba")
    (tmp_path / "now" / "code.nbi").unlink()
    ahead("mamba")
    assert len(told) == 2


def test_where_none_can_be_kept_it_is_said(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "machine_code_folder", lambda: None)
    ahead("mamba")
    (sentence,) = told
    assert "every process compiles it" in sentence and "NUMBA_CACHE_DIR" in sentence


def test_machine_code_that_has_not_been_added_to_for_months_is_removed(told: list[str], tmp_path: Path) -> None:
    for name, age, file in (
        ("0123456789abcdef", 100, "mamba.compiled"),
        ("0123456789abcdee", 100, "mamba2.compiled"),
        ("123456789abcdef0", 10, "mamba.compiled"),
        ("23456789abcdef01", 100, "someone's"),
        ("someone's", 100, "mamba.compiled"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        (tmp_path / name / f"gru_{file}").touch()
        then = time.time() - age * 24 * 3600
        os.utime(tmp_path / name, (then, then))
    ahead("mamba")
    assert {folder.name for folder in tmp_path.iterdir()} == {
        "123456789abcdef0", "23456789abcdef01", "someone's", "now",
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind,backend", [("mlp", "torch"), ("gru", "torch"), ("lstm", "reference"), ("mamba", "torch")]
)
def test_what_is_not_compiled_is_not_spoken_of(told: list[str], kind: str, backend: str) -> None:
    ahead(kind, backend)
    assert not told


@pytest.mark.parametrize(
    "kind,backend,use", [("mlp", "torch", "compile_ahead(built, 'mlp')"), ("gru", "auto", ACT), ("lstm", "auto", ACT)]
)
def test_numba_is_not_imported_where_nothing_compiled_runs(kind: str, backend: str, use: str) -> None:
    program = (
        "import sys, torch; from torch import Generator; "
        "from mneme.controllers import ControllerSettings, build_controller; "
        "from mneme.controllers.compilation import compile_ahead; "
        f"settings = ControllerSettings(kind='{kind}', backend='{backend}'); "
        f"built = build_controller(settings, 3, 5, Generator()); {use}; "
        "assert 'numba.core' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("hidden", ["", "encoder=(6,), heads=(5,), "])
def test_a_policy_is_compiled_whole_so_that_who_acts_finds_all_of_it(tmp_path: Path, hidden: str) -> None:
    program = (
        "from mneme.controllers import *; from mneme.controllers.compilation import compile_policy; "
        "from mneme.controllers.acting import Actor; import torch; "
        f"settings = PolicySettings({hidden}controller=MinGruSettings(hidden_size=8)); "
        "policy = build_policy(PolicySpec({'x': Vector(3)}, Categorical(2)), settings, 5, seed=0); "
    )
    ahead, after = (
        "compile_policy(policy, 'mingru')",
        "reset, uniform = torch.zeros(4, dtype=torch.bool), torch.zeros(4, 1); "
        "act = Actor(policy).act({'x': torch.zeros(4, 3)}, reset, policy.initial_carry(4), uniform); "
        "Actor(policy, greedy=True).act({'x': torch.zeros(4, 3)}, reset, act.carry, uniform)",
    )
    kept = []
    for use in (ahead, after):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program + use], check=True, env=environment)
        kept.append({path.name for path in tmp_path.rglob("*.nbc")})
    assert any("choice" in name for name in kept[0])
    assert kept[0] == kept[1]
