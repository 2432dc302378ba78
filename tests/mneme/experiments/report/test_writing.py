"""`mneme report`: which runs are compared as what, what the page holds, and what the gate lets through."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mneme.cli import main
from mneme.configuration.config import insert, parse_config
from mneme.configuration.records import read_yaml, write_yaml
from mneme.distributed.config import ConfigError
from mneme.experiments.report.groups import ALL, compare
from mneme.experiments.report.pictures import label_of
from mneme.experiments.report.records import read_records
from mneme.experiments.report.tables import differences_table, groups_table, modes_table
from mneme.experiments.report.writing import by_horizon, improvements, write_report


def run(folder: Path, success: float, *overrides: str, solved_at: int | None = None, seed: int = 0) -> Path:
    """A run's folder as training leaves it: ten updates, three evaluations, the last with this success."""
    tree: dict[str, Any] = {"env": {"kwargs": {"cues": 4, "horizon": 16}}, "seed": seed}
    for key, value in (override.split("=", 1) for override in overrides):
        insert(tree, key, read_yaml(value))
    config = parse_config(tree)
    path = folder / f"{len(list(folder.glob('*'))) if folder.exists() else 0:02d}-seed{seed}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(write_yaml(config.to_dict()))
    rows: list[dict[str, Any]] = []
    for update in range(1, 11):
        step = 100 * update
        rows.append(
            {"step": step, "time": 1.0, "steps_per_second": 50.0, "return": success * update / 10, "success": 0.1}
        )
        if step in (300, 600, 1000):
            reached = success if step == 1000 or (solved_at is not None and step >= solved_at) else 0.0
            figures = {"success": reached, "return": reached, "normalized_return": (reached - 0.25) / 0.75}
            rows.append({"step": step, "time": 1.0, **{f"evaluation/{key}": value for key, value in figures.items()}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on two tasks, three seeds each; read alone."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for horizon in (16, 64):
            for kind, success in (("gru", 0.9), ("mlp", 0.3)):
                given = [f"policy.controller.kind={kind}", f"env.kwargs.horizon={horizon}"]
                run(folder, success + 0.02 * seed, *given, seed=seed)
    (folder / "odd").mkdir()  # no run
    return folder


def test_runs_are_compared_by_what_differs_within_a_task(runs: Path) -> None:
    found = compare(read_records([runs]))
    assert found.score == "normalized_return"
    assert list(found.keys) == ["policy.controller.kind"]
    assert list(found.methods) == ["gru", "mlp"]
    assert list(found.tasks) == ["DelayedCue-v0 (cues=4, horizon=16)", "DelayedCue-v0 (cues=4, horizon=64)"]
    assert [len(cell.records) for cell in found.cells] == [3, 3, 3, 3]
    assert {record.horizon for record in read_records([runs])} == {16, 64}


def test_methods_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for length in (13, 4, 26):
        run(tmp_path, 0.5, "learner.mode=truncated", f"learner.bptt_length={length}")
    assert list(compare(read_records([tmp_path])).methods) == ["truncated 4", "truncated 13", "truncated 26"]


def test_what_only_one_kind_has_follows_from_the_kind_unless_it_differs_there_too(tmp_path: Path) -> None:
    for kind in ("gru", "mamba2"):
        run(tmp_path, 0.5, f"policy.controller.kind={kind}")
    assert list(compare(read_records([tmp_path])).keys) == ["policy.controller.kind"]
    run(tmp_path, 0.5, "policy.controller.kind=mamba2", "policy.controller.d_state=8")
    found = compare(read_records([tmp_path]))
    assert list(found.keys) == ["policy.controller.kind", "policy.controller.d_state"]
    assert "mamba2, d_state=8" in found.methods
    named = compare(read_records([tmp_path]), by=["policy.controller.kind"])
    assert [(cell.method, len(cell.records)) for cell in named.cells] == [("gru", 1), ("mamba2", 2)]


def test_seeds_alone_make_one_method(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path, 0.5, "checkpoint.keep=2", seed=seed)
    assert list(compare(read_records([tmp_path])).methods) == [ALL]


def test_the_table_has_scores_and_what_it_took_to_solve_the_task(tmp_path: Path) -> None:
    for seed, solved_at in enumerate((300, 600, None)):
        run(tmp_path, 0.5 if solved_at is None else 1.0, "train.stop_success=0.95", solved_at=solved_at, seed=seed)
    _, row = groups_table(compare(read_records([tmp_path]), score="success"))
    assert row[3:] == ("1.00, 1.00, 0.50", "2 of 3", "450", "9")  # at 50 steps a second
    assert row[2].startswith("0.833 [")


def test_the_better_method_comes_first_and_probably_improves(runs: Path) -> None:
    ((pair, estimate),) = improvements(compare(read_records([runs]))).items()
    assert pair == ("gru", "mlp")
    assert estimate == (1.0, 1.0, 1.0)


def test_success_at_horizons_that_were_never_seen_is_told_beside_that_at_its_own(tmp_path: Path) -> None:
    path = run(tmp_path, 0.9, "policy.controller.kind=gru")
    (path / "horizons.json").write_text('{"64": 0.5, "16": 0.1}')
    points = by_horizon(compare(read_records([tmp_path])))
    assert [(h, list(s)) for h, s in points["mneme/DelayedCue-v0", ALL]] == [(16, [0.9]), (64, [0.5])]
    run(tmp_path, 0.8, "policy.controller.kind=gru", "env.kwargs.horizon=64")  # what learned there is no seed of these
    points = by_horizon(compare(read_records([tmp_path])))
    assert [(h, list(s)) for h, s in points["mneme/DelayedCue-v0", ALL]] == [(16, [0.9]), (64, [0.8])]


def test_success_is_told_by_horizon_where_tasks_differ_by_it(runs: Path) -> None:
    points = by_horizon(compare(read_records([runs])))
    horizons, successes = zip(*points["mneme/DelayedCue-v0", "gru"], strict=True)
    assert horizons == (16, 64)
    assert [found.tolist() for found in successes] == [pytest.approx([0.9, 0.92, 0.94])] * 2


def test_modes_stand_side_by_side_and_differences_are_listed(tmp_path: Path) -> None:
    run(tmp_path, 0.5, "learner.mode=full")
    assert modes_table(compare(read_records([tmp_path]))) is None
    run(tmp_path, 0.2, "learner.mode=truncated", "learner.bptt_length=4")
    found = compare(read_records([tmp_path]))
    assert [row[0] for row in modes_table(found) or ()] == ["mode", "full", "truncated 4"]
    assert ("learner.mode", "truncated", "truncated 4") in differences_table(found)


def test_a_mode_is_named_by_what_counts_in_it(tmp_path: Path) -> None:
    for settings in (
        ["mode=full", "bptt_length=8"],
        ["mode=full", "bptt_length=9"],
        ["mode=cached", "carry_source=stored"],
        ["mode=truncated", "bptt_length=8", "carry_source=stored", "burn_in=2"],
    ):
        run(tmp_path, 0.5, *(f"learner.{setting}" for setting in settings))
    found = compare(read_records([tmp_path]))
    named = ["cached (stored carries)", "full", "truncated 8 (stored carries, burn-in 2)"]
    assert list(found.methods) == named
    assert [len(cell.records) for cell in found.cells if cell.method == "full"] == [2]


def test_the_page_holds_everything_and_asks_for_nothing(runs: Path, tmp_path: Path) -> None:
    done = write_report([runs], tmp_path / "out")
    page = done.page.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert "http" not in page.lower().replace("http-equiv", "")
    for title in ("Methods over tasks", "Learning curves", "Probability of improvement", "Success by horizon"):
        assert title in page
    assert page.count("data:image/png;base64,") == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "report.json", "runs.csv", "groups.csv", "curves.png", "profiles.png", "improvements.png",
        "horizons.png",
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "runs.csv").read_text())))
    assert len(rows) == 12
    assert {(row["method"], row["seed"]) for row in rows} == {(m, str(s)) for m in ("gru", "mlp") for s in range(3)}


def test_the_title_counts_what_is_compared_and_the_folder_is_named_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        path = run(tmp_path / "runs" / "sweeps" / "rates", 0.5, seed=number)
    assert main(["report", "runs/sweeps/rates"]) == 0
    page = Path("runs/reports/rates/report.html")
    assert f"wrote {page}" in capsys.readouterr().out
    assert "<title>rates: 3 runs</title>" in page.read_text()
    rows = [line for line in (path / "metrics.jsonl").read_text().splitlines() if "evaluation" not in line]
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert main(["report", "runs/reports/rates/report.json", "runs/sweeps/rates"]) == 0
    assert "<title>report.json, rates: 5 runs, and 1 never evaluated</title>" in page.read_text()


def test_a_method_of_many_settings_has_a_short_label() -> None:
    method = ", ".join(f"learner.setting_{i}={i}" for i in range(12))
    lines = label_of(method).splitlines()
    assert 1 < len(lines) <= 3 and max(map(len, lines)) <= 48
    assert lines[-1].endswith("…") and lines[0].startswith("learner.setting_0=0, learner.setting_1")
    assert label_of("gru") == "gru"


def test_names_of_runs_are_text_on_the_page(tmp_path: Path) -> None:
    path = run(tmp_path, 0.5, "env={id: 'mine:<script>alert(1)</script>'}")
    assert "<script>" not in write_report([path], tmp_path / "out").page.read_text()


def test_a_report_stands_for_its_runs(runs: Path, tmp_path: Path) -> None:
    write_report([runs], tmp_path / "out")
    assert read_records([tmp_path / "out"]) == read_records([runs])


@pytest.mark.parametrize(("share", "status"), [("0.95", 1), ("0.5", 0)])
def test_the_gate_fails_what_scores_less_than_allowed(
    share: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        run(tmp_path / "old", 1.0, seed=seed)
        run(tmp_path / "new", 0.7, "learner.gamma=0.9", seed=seed)  # other settings, the same method
    options = ["--out", str(tmp_path / "out"), "--against", str(tmp_path / "old"), "--score", "success"]
    assert main(["report", str(tmp_path / "new"), *options, "--fail-below", share]) == status
    verdict = "failed" if status else "passed"
    assert f"{verdict}: all runs on DelayedCue-v0 (cues=4, horizon=16) was 1.000" in capsys.readouterr().out
    assert f"Held against runs of old: {verdict}" in (tmp_path / "out" / "report.html").read_text()


def test_the_gate_fails_what_is_missing_and_allows_for_scores_below_zero(tmp_path: Path) -> None:
    run(tmp_path / "old", 0.1)  # a normalised return of -0.2
    run(tmp_path / "old", 0.5, "env.kwargs.horizon=64")
    run(tmp_path / "new", 0.1)
    done = write_report([tmp_path / "new"], tmp_path / "out", against=[tmp_path / "old"], share=0.9)
    assert [(held.passed, held.new is None) for held in done.held] == [(True, False), (False, True)]
    assert done.held[0].least == pytest.approx(-0.22)


def test_a_report_is_not_written_over_what_it_is_held_against(tmp_path: Path) -> None:
    run(tmp_path / "runs", 0.5)
    write_report([tmp_path / "runs"], tmp_path / "kept")
    with pytest.raises(ConfigError, match="kept, which runs are held against; choose another --out"):
        write_report([tmp_path / "runs"], tmp_path / "kept", against=[tmp_path / "kept"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--by", "policy.kind"], "--by names policy.kind, which no run has; name a setting by its whole name"),
        (["--score", "loss"], "--score is loss, which not every run has; all have success, return, normalized_return"),
        (["--fail-below", "0.9"], "--fail-below is a share of what runs of old came to; name them with --against"),
        (["--against", "nowhere"], "there is no run with metrics at nowhere; name a run's folder, one that holds runs"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, 0.5)
    assert main(["report", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_share_above_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--fail-below is 95; give a share of the old score, above 0 and at most 1"):
        write_report([run(tmp_path, 0.5)], tmp_path / "out", share=95)


def test_runs_without_an_evaluation_are_said_to_have_none(tmp_path: Path) -> None:
    path = run(tmp_path, 0.5)
    rows = [line for line in (path / "metrics.jsonl").read_text().splitlines() if "evaluation" not in line]
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(ConfigError, match="none of the runs has been evaluated; train to the end"):
        compare(read_records([path]))
