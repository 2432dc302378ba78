"""Results of the slots are tabulated by task and controller, and pictured where there is a gate."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import slots

TASK = "6 pairs, delay 8"
ROWS = [
    {"task": TASK, "controller": "mamba2", "seed": seed, "steps": 1_000_960, "success": success, "gate": None}
    for seed, success in enumerate((0.5, 0.25))
] + [{"task": TASK, "controller": "classic", "seed": 0, "steps": 9, "success": 1.0, "gate": 0.03125}]


def test_every_seed_is_in_the_table() -> None:
    console = Console(record=True, width=200)
    console.print(slots.table(ROWS))
    text = console.export_text()
    assert "50.0%, 25.0%" in text
    assert "1,000,960, 1,000,960" in text
    assert "0.031" in text


def test_what_has_a_gate_is_drawn(tmp_path: Path) -> None:
    slots.draw(ROWS, tmp_path / "slots.png")
    assert (tmp_path / "slots.png").stat().st_size > 5_000


def test_what_is_known_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, str, int]] = []

    def train(task: str, name: str, seed: int) -> slots.Row:
        trained.append((task, name, seed))
        return {"steps": 1, "success": 0.0, "gate": 0.5}

    monkeypatch.setattr(slots, "RESULTS", tmp_path)
    monkeypatch.setattr(slots, "trained", train)
    for seeds in (1, 2):
        monkeypatch.setattr("sys.argv", ["slots", "--tasks", TASK, "--controllers", "classic", "--seeds", str(seeds)])
        assert slots.main() == 0
    assert trained == [(TASK, "classic", 0), (TASK, "classic", 1)]


def test_a_run_tells_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "STEPS", 3_000)
    row = slots.trained(TASK, "classic", 0)
    assert row["steps"] >= 3_000
    assert 0 <= row["success"] <= 1
    assert 0 < row["gate"] < 1
    assert slots.trained(TASK, "mamba2", 0)["gate"] is None
