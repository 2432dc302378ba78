"""The benchmark for GPUs, on the CPU at tiny sizes: every stage runs, and what is wrong is called so."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import agreement, lengths, recurrences, speed, timing
from benchmarks.gpu.clock import Rates
from benchmarks.gpu.report import lines, sound
from benchmarks.gpu.scans import Contestant, contestants, other_tiles, tiled
from benchmarks.gpu.stages import Outcome
from benchmarks.gpu.trainer import Run, Trainer
from benchmarks.gpu.work import STAGES, Options
from mneme.learner.batch import SequenceBatch

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def told(module: Any, item: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    module.work(item, CPU, True, found.append)
    return found


def test_a_right_scan_is_found_right_and_a_wrong_one_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.scans.RESETS", 0.5)
    (right,) = told(agreement, "gru/torch/float32")
    assert right["passed"] and 0 < right["error"] < 1e-5
    scanned = agreement.scanned

    def without_resets(*given: Any) -> Any:
        controller, precision, x, reset, carry = given
        return scanned(controller, precision, x, reset & (x.dtype == torch.float64), carry)

    monkeypatch.setattr(agreement, "scanned", without_resets)
    (wrong,) = told(agreement, "gru/torch/float32")
    assert not wrong["passed"] and wrong["error"] > 0.1
    outcome = Outcome(results={"gru/torch/float32": [wrong]})
    assert not sound(outcome) and "WRONG" in "".join(lines("agreement", outcome))


def test_what_does_not_run_is_told_and_wrong_unless_it_is_bfloat16() -> None:
    (result,) = told(agreement, "mingru/torch/bfloat16")
    assert not result["passed"] and "RuntimeError" in result["failure"]
    assert sound(Outcome(results={"mingru/torch/bfloat16": [result]}))
    assert not sound(Outcome(results={"mingru/torch/tf32": [result]}))


def test_theirs_stand_beside_ours() -> None:
    found = contestants(CPU, ["mamba", "gru"], ["tf32", "bfloat16"])
    assert found[0] == Contestant("gru", "torch.nn", "tf32")
    assert Contestant("mamba", "torch", "tf32") in found and Contestant("mamba", "torch", "bfloat16") not in found
    outcome = Outcome(results={item: told(timing, item) for item in ("gru/torch.nn/tf32", "gru/torch/tf32")})
    ours = list(lines("timing", outcome))[1]
    assert "x torch.nn" in ours and "with backward" in ours


def test_other_tiles_than_the_best_by_the_estimate_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is for Linux")
    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in for a GPU where there is none")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert other_tiles(CPU, ["gru", "mamba"], 2) == [Contestant("gru", f"triton@{rank}", "tf32") for rank in (1, 2)]
    from mneme.controllers.scans.gru import triton as kernels
    from mneme.controllers.scans.persistent import ranked_tiles

    sizes, found = (7, 300, 128, 128, 3, 4, 132), []
    for backend in ("triton", "triton@1", "triton@2"):
        with tiled(Contestant("gru", backend, "tf32")):
            found.append(kernels.tiles(*sizes))
    assert found == ranked_tiles(*sizes)[:3] and len(set(found)) == 3
    assert kernels.tiles(*sizes) == found[0]


def test_the_floor_of_a_recurrence_is_what_it_has_to_read_and_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrences, "median_seconds", lambda run, device: run() and 2.0)
    monkeypatch.setattr(recurrences, "rates", lambda dtype, device: Rates(flops=1.0, bytes=4.0))
    (result,) = told(recurrences, "linear/torch")
    steps, lanes, channels = result["shape"]
    read = 2 * steps * lanes * channels + lanes * channels + channels
    written = steps * lanes * channels + lanes * channels
    assert result["forward_share"] == (read + written) / 2
    assert result["both_share"] == (3 * read + 2 * written) / 2
    assert told(recurrences, "selective/torch") and told(recurrences, "ssd/torch")


def test_long_sequences_are_the_short_ones_end_to_end() -> None:
    trainer = Trainer(Run.of("device/gru/torch/4"), CPU, tiny=True)
    batch, _ = trainer.collect()
    twice = lengths.repeated(batch, 2, CPU)
    assert twice.length == 2 * batch.length and twice.carry_stride == twice.length
    for field in fields(SequenceBatch):
        x, y = getattr(batch, field.name), getattr(twice, field.name)
        if isinstance(x, torch.Tensor) and x.dim() == 2:
            assert torch.equal(y[:, : batch.length], x[:, : batch.length])
            assert torch.equal(y[:, batch.length :], x)
    report = trainer.learner.train_on(replace(twice))
    assert report.steps == 2 * batch.steps
    assert report.metrics["ratio_error"] < 1e-5  # every repetition begins with a reset


def test_every_stage_has_its_share_of_less_than_six_minutes() -> None:
    assert sum(stage.seconds for stage in STAGES.values()) <= 350
    assert all(stage.item_seconds < stage.seconds for stage in STAGES.values())
    options = Options(device="cpu", tiny=True, kinds=("gru", "mingru"))
    assert Options.of(*options.words()) == options
    for stage in STAGES:
        assert len(items := options.items(stage)) == len(set(items)) > 0


def test_speed_says_where_the_time_goes() -> None:
    result, kernels = told(speed, "device/gru/torch/8")
    assert result["steps_per_second"] > 0 and result["batch"] == 8 * 3 and result["busy"] is None
    assert 0.5 < sum(result["shares"].values()) <= 1.0
    seen = kernels["kernels"]
    assert seen["launched"] > 100 and 0 < seen["in_kernels"] < seen["seconds"]
    longest = [seconds for seconds, _ in seen["longest"].values()]
    assert len(longest) == speed.LISTED and longest == sorted(longest, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("interpreted", [False, True])
def test_the_command_runs_every_stage_and_stores_what_it_found(tmp_path: Path, interpreted: bool) -> None:
    if interpreted:
        pytest.importorskip("triton", reason="triton is for Linux")
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--kinds", "gru", "mingru"]
    only = ["--stages", "agreement", "timing"] if interpreted else []
    done = subprocess.run(
        [*command, "--minutes", "20", "--output", str(output), *only],
        env={**os.environ, **({"TRITON_INTERPRET": "1"} if interpreted else {})},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(output.read_text())
    assert document["device"] == "cpu" and document["versions"]["torch"] == torch.__version__
    stages = document["stages"]
    assert list(stages) == only[1:] or list(stages) == list(STAGES)
    for name, stage in stages.items():
        assert stage["left"] == [] and stage["failures"] == {} and stage["skipped"] == "", name
        assert stage["results"] and all(stage["results"].values())
    if interpreted:
        assert stages["agreement"]["results"]["mingru/triton/float32"][0]["passed"]
    else:
        assert all(results[-1]["solved"] for results in stages["solving"]["results"].values())


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    hidden = (
        "import sys, importlib.util as u, runpy; found = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name in ('gymnasium', 'pyarrow') else found(name, *a);"
        "sys.argv = ['gpu', '--device', 'cpu', '--tiny', '--stages', 'solving', '--output', sys.argv[1]];"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    output = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, "-c", hidden, str(output)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not installed, so that what needs it is left out: ")
    assert "gymnasium, pyarrow" in done.stdout.splitlines()[0]
    skipped = json.loads(output.read_text())["stages"]["solving"]["skipped"]
    assert skipped == "gymnasium and pyarrow are not installed"


@pytest.mark.parametrize(
    ("modules", "without"),
    [("agreement timing", ("gymnasium", "pyarrow")), ("solving speed lengths", ())],
)
def test_stages_need_no_more_than_they_say(modules: str, without: tuple[str, ...]) -> None:
    hidden = ("ray", "mlflow", "pydantic", "rich", "psutil", "safetensors", "yaml", "matplotlib", *without)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}));"
        f"import benchmarks.gpu.__main__, torch; from importlib import import_module;"
        f"stages = [import_module('benchmarks.gpu.' + name) for name in {modules.split()}];"
        f"cpu = torch.device('cpu'); items = [stage.items(cpu, ['gru'], True) for stage in stages];"
        f"told = []; stages[-1].work(items[-1][-1], cpu, True, told.append); assert told"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_device_that_is_not_there_is_refused_in_one_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == (
        "torch finds no GPU on this machine; to try the command without one, use --device cpu --tiny\n"
    )
