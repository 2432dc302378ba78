"""Paths that were taken for a run."""

from pathlib import Path

import pytest

from mneme.storage.absent import no_run_at
from mneme.storage.checkpoint import CheckpointError, find_checkpoint


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("runs/bas", "there is no run at runs/bas; did you mean runs/base?"),
        ("elsewhere/othr", "there is no run at elsewhere/othr; did you mean elsewhere/other?"),
        ("base", "there is no run at base; did you mean runs/base?"),
        ("runs", "there is no run at runs, but there are some below it; name one, such as runs/base"),
        ("empty", "there is no run at empty; name a run's folder, or list those of a folder with: mneme runs"),
        ("runs/suites", "there is no run at runs/suites; name a run's folder, or list"),
        ("runs/nosuch", "there is no run at runs/nosuch; name a run's folder, or list"),
        ("/nowhere/at/all", "there is no run at /nowhere/at/all; name a run's folder, or list"),
    ],
)
def test_the_run_that_may_be_meant_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/base/checkpoints", "runs/suites", "elsewhere/other/checkpoints", "empty"):
        Path(folder).mkdir(parents=True)
    assert no_run_at(Path(given)).startswith(sentence)
    with pytest.raises(CheckpointError) as refusal:
        find_checkpoint(Path(given))
    assert str(refusal.value) == no_run_at(Path(given))
