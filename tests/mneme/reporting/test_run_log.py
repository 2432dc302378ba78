"""The log for programs: a line for everything that is said, which costs nothing else."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from mneme.callbacks import Progress
from mneme.reporting.listening import Listener
from mneme.reporting.run_log import RunLog

LOG = logging.getLogger("mneme.some.part")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_how_grave_where_in_the_run_and_of_whom(tmp_path: Path) -> None:
    path, before = tmp_path / "log.jsonl", time.time()
    with RunLog(path) as log:
        LOG.info("starting")
        log.on_begin(Progress(3, 300, 1000))
        LOG.warning("rollout actor 2 was lost\nindeed", extra={"worker": 2})
        log.on_update(Progress(4, 400, 1000), {})
        LOG.info("%s ends", "level 1")
        LOG.debug("nothing")
    LOG.warning("afterwards")
    first, lost, ends = lines(path)
    assert before - 1 <= first.pop("time") <= lost.pop("time") <= ends.pop("time") <= time.time() + 1
    assert first == {"level": "INFO", "message": "starting"}
    assert lost == {
        "level": "WARNING", "message": "rollout actor 2 was lost\nindeed", "step": 300, "version": 3, "worker": 2,
    }  # fmt: skip
    assert ends == {"level": "INFO", "message": "level 1 ends", "step": 400, "version": 4}


def test_a_resumed_run_goes_on_with_the_file_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"time": 1.0, "lev')
    with RunLog(path):
        LOG.warning("back")
    assert json.loads(path.read_text().splitlines()[1])["message"] == "back"


def test_a_file_that_cannot_be_written_costs_lines_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path):
        LOG.info("lost")
    with RunLog(Path("/dev/full")):
        LOG.info("lost, too")
    assert capsys.readouterr().err == ""


def test_the_logger_is_left_as_it_was_whoever_ends_first(tmp_path: Path) -> None:
    logger = logging.getLogger("mneme")
    before = logger.level, list(logger.handlers)
    another, log = Listener(), RunLog(tmp_path / "log.jsonl")
    another.listen()
    log.listen()
    another.stop_listening()
    assert logger.isEnabledFor(logging.INFO)
    log.stop_listening()
    assert (logger.level, logger.handlers) == before


def test_warnings_are_still_shown_where_nobody_else_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with RunLog(tmp_path / "log.jsonl"):
        LOG.info("quiet")
        LOG.warning("loud")
    assert capsys.readouterr().err == "loud\n"
