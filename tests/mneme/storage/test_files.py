"""A run's folder that a stranger has made leads no write anywhere else."""

import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from mneme.callbacks import Progress
from mneme.configuration.config import load_config
from mneme.reporting.curves import LearningCurve
from mneme.storage.holding import Holding, held
from mneme.storage.run_folder import RunFolder, append_line

PRECIOUS = "precious\n"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "precious.txt"
    path.write_text(PRECIOUS)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(folder: RunFolder, target: Path) -> None:
    (folder.path / ".lock").symlink_to(target)
    for refused in (folder.lock, folder.refuse_if_in_use):
        with pytest.raises(OSError, match=r"\.lock is a link, which may lead anywhere; remove it$"):
            refused()
    assert not held(folder.path)
    assert target.read_text() == PRECIOUS


@pytest.mark.timeout(20)
def test_a_pipe_for_a_lock_holds_nobody_up(folder: RunFolder) -> None:
    os.mkfifo(folder.path / ".lock")
    assert not held(folder.path)
    with pytest.raises(OSError, match=r"\.lock is no file; remove it$"):
        folder.lock()


def test_files_that_are_written_anew_leave_the_target_of_a_link_alone(folder: RunFolder, target: Path) -> None:
    for part in (".config.yaml.part", ".metrics.jsonl.part", ".state.json.part", f".state.json.{os.getpid()}"):
        (folder.path / part).symlink_to(target)
    for name in ("config.yaml", "state.json"):
        (folder.path / name).symlink_to(target)
    folder.write_config(load_config(None, []))
    folder.rewind(0)
    with Holding(folder.path):
        pass
    for name in ("config.yaml", "metrics.jsonl", "state.json"):
        assert (folder.path / name).is_file() and not (folder.path / name).is_symlink()
    assert target.read_text() == PRECIOUS


def test_lines_are_not_added_to_the_target_of_a_link(folder: RunFolder, target: Path) -> None:
    for path in (folder.metrics, folder.log):
        path.symlink_to(target)
        with pytest.raises(OSError, match="is a link"):
            append_line(path, {})
    assert target.read_text() == PRECIOUS


def test_a_picture_is_not_drawn_over_the_target_of_a_link(folder: RunFolder, target: Path) -> None:
    folder.curve.symlink_to(target)
    folder.append(1, {"return": 0.5})
    curve = LearningCurve()
    curve.on_start(Mock(config=load_config(None, []), folder=folder.path, blueprint=Mock(facts=None)))
    curve.on_end(Progress(1, 1, 1), "complete")
    assert target.read_text() == PRECIOUS
