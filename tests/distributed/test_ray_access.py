"""What is settled before Ray starts, and what is said where it does not."""

import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private import services
from ray._private import utils as ray_utils

from mneme.distributed import ray_access, ray_runner
from mneme.distributed.ray_access import (
    apart_from_our_signals,
    check_address,
    keep_token_private,
    saying_that_it_goes_on,
    sigterm_kept,
)
from mneme.distributed.runners import ServiceError
from mneme.distributed.settings import ServiceSettings


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:8265", "RAY_ADDRESS is http://127.0.0.1:8265, where Ray's dashboard takes jobs"),
        ("https://head", "where Ray's dashboard takes jobs"),
        ("tcp://head:6379", "no address of a cluster; use auto, HOST:6379 or ray://HOST:10001"),
        ("head", "no address of a cluster"),
        ("ray://head", "no address of a cluster"),
        ("head:port", "no address of a cluster"),
        ("head:99999", "no address of a cluster"),
        (":6379", "no address of a cluster"),
    ],
)  # fmt: skip
def test_an_address_of_another_kind_is_refused_with_what_to_use(address: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_address(address, "RAY_ADDRESS")


def test_a_host_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.create_connection", unknown)
    with pytest.raises(OSError, match="the host haed in service.address is not known"):
        check_address("haed:6379", "service.address")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_its_owners_alone(home: Path, notes: list[str]) -> None:
    keep_token_private()
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    content = token.read_text()
    assert len(content) == 64
    assert notes == []
    token.chmod(0o644)
    keep_token_private()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == content
    assert "could be read by others" in notes[0]


def test_of_two_that_make_a_token_at_once_both_use_the_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = home / ".ray" / "auth_token"

    def slowly(_: int) -> str:
        token.write_text("the other's")
        token.chmod(0o600)
        return "ours"

    monkeypatch.setattr("secrets.token_hex", slowly)
    keep_token_private()
    assert token.read_text() == "the other's"
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_home_that_cannot_be_written_gets_a_token_for_this_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))
    keep_token_private()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN_PATH" in notes[0]


def test_a_start_that_takes_long_is_said_to_go_on(monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    monkeypatch.setattr(ray_access, "_SILENCE", 0.001)
    with saying_that_it_goes_on("starting Ray"):
        while not notes:
            pass
    assert notes[0].startswith("starting Ray: 0 s so far")


@pytest.mark.parametrize("mode", [None, "token", "disabled"])
def test_who_cannot_join_and_has_shown_no_token_is_told_of_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    """Ray says no more than this where a token is wanted."""

    def fails(**_: Any) -> None:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # as Ray may leave it
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr("ray.init", fails)
    with pytest.raises(ServiceError, match="cannot join the Ray cluster at auto: Failed to connect") as told:
        ray_runner.start_ray(ServiceSettings(address="auto"), 1)
    assert ("if the cluster asks for a token, set RAY_AUTH_MODE=token" in str(told.value)) is (mode is None)


def test_an_address_that_is_refused_is_not_a_matter_of_tokens(home: Path) -> None:
    with pytest.raises(ServiceError, match="where Ray's dashboard takes jobs") as told:
        ray_runner.start_ray(ServiceSettings(address="http://127.0.0.1:8265"), 1)
    assert "token" not in str(told.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Exception("The current node timed out during startup. This\n could"), "try again when it is"),
        (PermissionError(13, "Permission denied", "/tmp/ray"), "in RAY_TMPDIR"),
        (TimeoutError(), "cannot start Ray on this machine: TimeoutError"),
    ],
)  # fmt: skip
def test_a_ray_that_does_not_start_is_one_sentence_with_a_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr("ray.init", fails)
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    with pytest.raises(
        ServiceError, match="cannot start Ray on this machine: .*; or train without Ray: --local"
    ) as told:
        ray_runner.start_ray(ServiceSettings(), 1)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_ray_leaves_our_sigterm_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_kept():
        ray_utils.set_sigterm_handler(lambda *_: pytest.fail("Ray's own"))
    assert signal.getsignal(signal.SIGTERM) == before
    ray_utils.set_sigterm_handler(before)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere Ray ends its processes as our group's")
def test_what_ray_starts_is_in_no_group_of_ours() -> None:
    def session() -> int:
        with services.ConsolePopen(["sleep", "60"]) as process:
            found = os.getsid(process.pid)
            process.kill()
        return found

    ours = os.getsid(0)
    with apart_from_our_signals():
        assert session() != ours
    assert session() == ours
