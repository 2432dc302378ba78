"""`mneme suite modes`: what it keeps of a run, and the figures that it makes of them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mneme.cli import main
from mneme.distributed.config import ConfigError
from mneme.experiments.suite.modes import MODES_CONTEST, VARIANTS, _prepare
from mneme.experiments.suite.modes_table import COLUMNS, as_markdown, figures
from mneme.experiments.suite.running import run_suite
from mneme.experiments.update_cost import Cost

SMALL = (
    "rollout.num_envs=8", "rollout.unroll_length=40", "policy.controller.hidden_size=8", "train.total_timesteps=1500",
    "train.evaluation_episodes=8", "learner.num_threads=1", "learner.num_minibatches=2", "learner.fidelity_every=2",
)  # fmt: skip
COST = {"peak": 4, "seconds": 1.0, "collecting": 1.0, "fragment": 2**20}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contest(*variants: str) -> Any:
    """The contest with some of its variants, and costs that nobody has measured."""

    def prepare(document: Any, controllers: Any, console: Any) -> bool:
        document["costs"] = {kind: dict.fromkeys(("full", *variants), COST) for kind in controllers}
        return True

    return MODES_CONTEST._replace(variants={name: VARIANTS[name] for name in variants}, prepare=prepare)


def test_a_run_keeps_its_curve_its_gradients_fidelity_and_how_carries_aged() -> None:
    modes, out = ("full", "truncated 16, stored, burn-in 16", "cached"), io.StringIO()
    arguments = (["copy_memory@16"], ["gru"], 1)
    assert run_suite(
        *arguments, name="m", local=True, overrides=SMALL, console=Console(file=out), contest=contest(*modes)
    )
    folder = Path("runs/suites/m")
    document = json.loads((folder / "results.json").read_text())
    assert [run["variant"] for run in document["runs"]] == list(modes)
    for run in document["runs"]:
        steps = [step for step, _ in run["curve"]]
        assert steps == sorted(steps)
        assert steps[-1] == run["steps"] == 1600
        assert len(run["staleness_by_epoch"]) == 4
    fidelity = {run["variant"]: run["fidelity_cosine"] for run in document["runs"]}
    assert fidelity["full"] == pytest.approx(1, abs=1e-4)
    assert fidelity["cached"] < fidelity["full"]
    assert document["tasks"]["copy_memory@16"]["kwargs"]["delay"] == 13
    assert (folder / "table.md").read_text() == as_markdown(document)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["mode"] for row in rows] == [*modes, *modes]  # of the runs, and what each costs
    assert (folder / "modes.png").read_bytes().startswith(b"\x89PNG")
    assert "[3 of 3] copy_memory@16, gru, cached, seed 0: not solved" in out.getvalue()


def run_of(variant: str, seed: int, *returns: float) -> dict[str, Any]:
    curve = [(100 * (i + 1), value) for i, value in enumerate(returns)]
    return {
        "task": "t@16", "controller": "gru", "variant": variant, "seed": seed, "steps": curve[-1][0], "curve": curve,
        "success": returns[-1], "fidelity_cosine": 0.5, "fidelity_norm_ratio": 1.0, "fidelity_core_cosine": None,
        "fidelity_core_norm_ratio": 1.0, "staleness_by_epoch": [0.1, 0.3],
    }  # fmt: skip


HAND_MADE: dict[str, Any] = {
    "tasks": {"t@16": {"memoryless_return": 0.2, "optimal_return": 1.0}},
    "costs": {
        "gru": {
            "full": COST,  # of a step, collecting and four epochs: 5
            "cached, stored": COST | {"seconds": 2.0, "peak": 2},  # 9
        }
    },
    "runs": [
        run_of("full", 0, *[0.2] * 9, 1.0), run_of("full", 1, *[0.2] * 9, 0.6),
        run_of("cached, stored", 0, 0.2, 0.2, 0.2, 0.6, *[1.0] * 6),
        {"task": "t@16", "controller": "gru", "variant": "cached, stored", "seed": 1, "failure": "the loss is nan"},
    ],
}  # fmt: skip


def test_figures_are_means_over_seeds_at_equal_steps_and_at_equal_time() -> None:
    full, stored, *costs = figures(HAND_MADE)
    assert (full["seeds"], full["failed"], stored["seeds"], stored["failed"]) == (2, 0, 2, 1)
    assert full["return_equal_steps"] == pytest.approx((1.0 + 0.5) / 2)  # of the last tenth, from 0.2 to 1
    assert (full["return_equal_steps_low"], full["return_equal_steps_high"]) == pytest.approx((0.5, 1.0))
    assert full["return_equal_time"] == pytest.approx(0.0)  # seven tenths of the steps
    assert stored["return_equal_time"] == pytest.approx(0.0)  # 0.7 * 5 / 9 of 1,000 steps: three updates
    assert (stored["update_time"], stored["peak_memory"], stored["fragment_mib"]) == (2.0, 0.5, 1.0)
    assert "staleness" not in full
    assert stored["staleness"] == pytest.approx(0.3)
    assert stored["core_cosine"] is None
    assert [(row["task"], row["mode"]) for row in costs] == [("", "full"), ("", "cached, stored")]


def test_the_table_has_a_row_a_mode_and_dashes_for_what_is_not_known() -> None:
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in as_markdown(HAND_MADE).splitlines()]
    assert lines[0] == [
        "gru", "time", "memory", "fragment, MiB", "cosine", "of the core", "staleness", "return, 16 steps",
        "return, equal time, 16 steps",
    ]  # fmt: skip
    assert lines[2] == ["full", "1.00", "1.00", "1", "0.50", "–", "–", "0.75", "0.00"]
    assert lines[3] == ["cached, stored", "2.00", "0.50", "1", "0.50", "–", "0.30", "1.00", "0.00"]


def test_costs_are_measured_once_for_each_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Apart:
        def __init__(self, *options: Any, **more: Any) -> None: ...
        def __enter__(self) -> "Apart":
            return self

        def __exit__(self, *error: Any) -> None: ...
        def submit(self, work: Any, kind: str) -> Any:
            asked.append(kind)
            return self

        def result(self) -> dict[str, Cost]:
            return {"full": Cost(1, 2.0, 3.0, 4)}

    asked: list[str] = []
    monkeypatch.setattr("mneme.experiments.suite.modes.ProcessPoolExecutor", Apart)
    monkeypatch.setattr("sys.platform", "linux")
    document: dict[str, Any] = {"costs": {"gru": {}}}
    assert _prepare(document, ["gru", "lstm"], Console(file=io.StringIO()))
    assert asked == ["lstm"]
    assert document["costs"]["lstm"] == {"full": {"peak": 1, "seconds": 2.0, "collecting": 3.0, "fragment": 4}}


def test_every_variant_is_a_mode_that_can_be_and_other_tasks_are_refused() -> None:
    assert len(VARIANTS) == 1 + 4 * 3 + 2
    with pytest.raises(ConfigError, match=r"--tasks names tmaze; there are delayed_cue@16, "):
        run_suite(["tmaze"], ["gru"], 1, name="m", local=True, console=Console(), contest=MODES_CONTEST)


def test_the_word_modes_chooses_the_contest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "modes", "--table"]) == 2
    assert "runs/suites/modes holds no results; run mneme suite" in capsys.readouterr().err
    assert main(["suite", "--table"]) == 2
    assert "runs/suites/suite holds no results" in capsys.readouterr().err
