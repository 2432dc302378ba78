"""The gate of speed: it names what got slower beside the reference, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import check
from benchmarks.contestants import Contestant, ContestantError
from benchmarks.measurement import Measurement


def measured(seconds: float, of_processor: float) -> Measurement:
    return Measurement(
        steps=1000, seconds=seconds, processor_seconds=of_processor, mean_return=None, configuration={}, versions={}
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the check where every contestant takes a second but for those of which something else is said."""
    monkeypatch.setattr(check, "STORED", tmp_path / "check.json")

    def with_seconds(*arguments: str, **seconds: tuple[float, float]) -> int:
        def measure(contestant: Contestant, steps: int, seed: int) -> Measurement:
            return measured(*seconds.get(contestant.key.replace("-", "_"), (1.0, 1.0)))

        monkeypatch.setattr(Contestant, "measure", measure)
        monkeypatch.setattr("sys.argv", ["check", "--rounds", "1", *arguments])
        return check.main()

    return with_seconds


def test_what_got_slower_is_named(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--keep") == 0
    assert run(bare_gru=(1.05, 1.0), ray_gru=(1.5, 1.0)) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "ray-gru runs at 0.67 of its speed before, by the clock" in said
    assert "bare-gru runs" not in said
    assert run(bare_lstm=(1.0, 2.0)) == 1
    assert "bare-lstm runs at 0.50 of its speed before, by the seconds" in " ".join(capsys.readouterr().out.split())


def test_a_machine_that_is_slower_at_everything_is_no_loss(run: Callable[..., int]) -> None:
    assert run("--keep") == 0
    slow = dict.fromkeys(("floor_gru", "bare_gru", "bare_lstm", "ray_gru"), (3.0, 2.0))
    assert run(**slow) == 0


def test_the_tolerance_and_the_reference_are_chosen(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--keep", "--reference", "jax-gru") == 0
    assert json.loads((tmp_path / "check.json").read_text())["reference"] == "jax-gru"
    assert run("--tolerance", "0.6", jax_gru=(0.5, 0.5)) == 0
    assert run("--tolerance", "0.4", jax_gru=(0.5, 0.5)) == 1


def test_without_ratios_it_says_how_to_get_them(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 1
    assert 'ARGS="--keep"' in " ".join(capsys.readouterr().out.split())


def test_who_cannot_be_measured_stops_it(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(contestant: Contestant, steps: int, seed: int) -> Measurement:
        raise ContestantError("it hangs")

    monkeypatch.setattr(Contestant, "measure", measure)
    monkeypatch.setattr("sys.argv", ["check", "--keep"])
    assert check.main() == 1
    assert not (tmp_path / "check.json").exists()
