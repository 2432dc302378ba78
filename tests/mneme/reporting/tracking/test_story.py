"""What MLflow's pages say of a run in words."""

import sys
from pathlib import Path

import pytest

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.reporting.tracking.story import code_tags, tags_of, told


def test_a_note_says_what_how_far_and_how_to_repeat_it() -> None:
    config = load_config(None, ["env.kwargs.horizon=6", "learner.mode=truncated", "learner.bptt_length=4", "seed=3"])
    story = told(make_blueprint(config), "my run")
    note = story._replace(how_far="**Result at step 9**: all of them").note("1f2e")
    assert note.startswith(
        "**gru** on **mneme/DelayedCue-v0** (horizon=6), by PPO with gradients through 4 steps in sync"
    )
    assert "seed 3" in note
    assert "Without memory the best return is 0.25, of all 1." in note
    assert "**Result at step 9**: all of them" in note
    assert "`mneme train config.yaml name='my run-again'`" in note
    assert "`mneme evaluate runs:/1f2e/best`" in note
    assert "](get-artifact" not in note
    assert "mneme evaluate" not in story._replace(model=False).note("1f2e")
    assert "![learning curve](get-artifact?path=curve.png&run_uuid=1f2e)" in story._replace(curve=True).note("1f2e")


def test_tags_say_by_what_runs_are_told_apart_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/venv/bin/mneme", "train", "x", "tracking.uri=http://me:secret@host"]
    monkeypatch.setattr(sys, "argv", words)
    config = load_config(None, ["policy.controller.kind=lstm", "learner.device=cpu"])
    tags = tags_of(make_blueprint(config))
    expected = {"task": "mneme/DelayedCue-v0", "controller": "lstm", "mode": "full", "service": "sync", "device": "cpu"}
    assert expected.items() <= tags.items()
    assert tags["mlflow.source.name"].startswith("mneme train x")
    assert "secret" not in tags["mlflow.source.name"]
    assert tags["machine"].endswith("cores")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/clone/mneme/__main__.py", "train", "x"], "mneme train x"),
        (["/venv/ray/default_worker.py", "--redis-password=secret"], "default_worker.py"),
        (["/mine/train.py", "--key", "secret"], "train.py"),
        ([""], ""),
    ],
)
def test_of_other_programs_only_the_name_is_told(words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert tags_of(make_blueprint(load_config(None, ["learner.device=cpu"])))["mlflow.source.name"] == told


def test_the_version_of_the_code_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tags = code_tags()
    assert tags["version"]
    assert len(tags.get("mlflow.source.git.commit", "0" * 40)) == 40
    monkeypatch.setattr("mneme.reporting.tracking.story._ROOT", tmp_path)
    assert "mlflow.source.git.commit" not in code_tags()
