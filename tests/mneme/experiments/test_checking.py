"""`mneme check`: what it prints, its exit status, and its sentences about controllers that cannot be checked."""

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from mneme.cli import main
from mneme.controllers.contract import CHECKS
from mneme.distributed.config import ConfigError
from mneme.experiments.checking import check_controller
from tests.controllers.test_contract_can_fail import Sound

BROKEN = "tests.controllers.test_contract_can_fail"
SMALL = "hidden_size=6"


class RaisesWhenBuilt(Sound):
    def __init__(self, *arguments: Any) -> None:
        raise RuntimeError("no\nroom")


class TakesNoSettings(Sound):
    def __init__(self, input_size: int) -> None:
        pass


class HasNoCarry(Sound):
    def __init__(self, *arguments: Any) -> None:
        torch.nn.Module.__init__(self)


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mneme.controllers.contract.figures._SECONDS", 0.0)


def report(kind: str, *settings: str) -> tuple[bool, str]:
    out = io.StringIO()
    passed = check_controller(kind, settings, Console(file=out, width=200))
    return passed, out.getvalue()


def test_a_sound_controller_passes_and_is_measured() -> None:
    passed, text = report("gru", SMALL, "num_layers=2")
    assert passed
    assert text.count(" passed") == len(CHECKS) + 1
    assert "backend numba" in text
    assert "parameters" in text and "48 bytes a lane" in text and "torch.nn.GRU(" in text


def test_a_broken_one_fails_with_the_place_of_its_error() -> None:
    passed, text = report(f"{BROKEN}:OtherStep", SMALL)
    assert not passed
    assert text.count("FAILED") == 1
    assert "steps are the scan: output, step by step" in text
    assert f"1 of {len(CHECKS)} checks failed" in text


def test_shapes_that_are_wrong_end_the_checks_with_a_sentence() -> None:
    passed, text = report(f"{BROKEN}:NarrowOutput", SMALL)
    assert not passed
    assert "output of a scan is torch.float64 [3, 4, 5]; it must be torch.float64 [3, 4, 6]" in text
    assert f"{len(CHECKS) - 1} more checks need results of the right shape" in text
    assert "torch.nn.GRU" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("grue",), "policy.controller.kind is 'grue'"),
        (("gru", "hiden_size=6"), "did you mean policy.controller.hidden_size?"),
        (("gru", "num_slots=3"), "policy.controller.num_slots is 3, but is a setting of pseudo_mamba alone"),
        (("gru", "hidden_size=0"), "policy.controller.hidden_size is 0"),
        (("gru", "policy.controller.hidden_size=6"), "all of policy.controller; leave that out"),
        (("gru", "backend=triton"), "does not run on cpu here: it is made for CUDA devices; choose auto or numba"),
        ((f"{__name__}:HasNoCarry",), "HasNoCarry', which cannot be built: AttributeError"),
        (
            (f"{__name__}:RaisesWhenBuilt",),
            "RaisesWhenBuilt', which cannot be built: RuntimeError: no room",
        ),
        ((f"{__name__}:TakesNoSettings",), "TakesNoSettings', which cannot be built: TypeError"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        report(*words)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_exit_status_says_whether_it_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mlp", SMALL]) == 0
    assert main(["check", f"{BROKEN}:OtherStep", SMALL]) == 1
    assert main(["check", "grue"]) == 2
    assert "mneme: policy.controller.kind is 'grue'" in capsys.readouterr().err
