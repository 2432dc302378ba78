"""What users name is understood however it is spelt, and what cannot be is refused with a remedy."""

import errno
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from mneme.configuration.config import load_config
from mneme.distributed.config import ConfigError
from mneme.storage.checkpoint import find_checkpoint, save_checkpoint
from mneme.storage.paths import checked_name, explained, local_path, locate, pasted
from mneme.storage.run_folder import RunFolder

NEWEST = "step-000000000128"


def make_run(folder: Path) -> Path:
    for step in (64, 128):
        save_checkpoint(folder / "checkpoints", step, {"steps": step}, {"learner": {}}, keep=3)
    (folder / "config.yaml").write_text("")
    return folder


@pytest.mark.parametrize("name", ["a", "checkpoints", "step-5", "[red]x", "a: b", "run #3", "100%?"])
@pytest.mark.parametrize(
    ("stand", "given", "checkpoint"),
    [
        ("", "{run}", None),
        ("", "{run}/", None),
        ("", "{run}/../{name}", None),
        ("", "{run}/checkpoints", None),
        ("", "{run}/checkpoints/", None),
        ("", "{run}/config.yaml", None),
        ("", "{run}/checkpoints/step-000000000064", "step-000000000064"),
        ("", "{run}/checkpoints/step-000000000064/run.json", "step-000000000064"),
        ("", "link", None),
        ("", "link/checkpoints", None),
        ("", "latest", NEWEST),
        ("{run}", ".", None),
        ("{run}", "./", None),
        ("{run}", "../{name}", None),
        ("{run}", "checkpoints", None),
        ("{run}/checkpoints", "..", None),
        ("{run}/checkpoints", ".", None),
        ("{run}/checkpoints", "step-000000000064", "step-000000000064"),
        ("{run}/checkpoints/step-000000000064", ".", "step-000000000064"),
        ("{run}/checkpoints/step-000000000064", "..", None),
        ("{run}/checkpoints/step-000000000064", "../..", None),
    ],
)
def test_a_run_is_found_by_every_name_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stand: str, given: str, checkpoint: str | None
) -> None:
    run = make_run(tmp_path / "runs" / name)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "latest").symlink_to(run / "checkpoints" / NEWEST)
    words = {"run": f"runs/{name}", "name": name}
    monkeypatch.chdir(tmp_path / stand.format(**words))
    place = locate(Path(given.format(**words)))
    assert place.run is not None
    assert place.run.resolve() == run
    assert (place.checkpoint and place.checkpoint.name) == checkpoint
    assert RunFolder.of(Path(given.format(**words))).path.name in (name, "link")
    assert find_checkpoint(Path(given.format(**words)))[0].resolve().name == (checkpoint or NEWEST)


def test_a_run_keeps_the_name_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert locate(Path("runs/a")).run == Path("runs/a")
    assert locate(Path("runs/a/checkpoints")).run == Path("runs/a")
    monkeypatch.chdir(tmp_path / "runs" / "a")
    assert locate(Path(".")).run == tmp_path / "runs" / "a"


def test_a_checkpoint_outside_a_run_is_evaluated_and_not_resumed(tmp_path: Path) -> None:
    alone = tmp_path / "best"
    (make_run(tmp_path / "a") / "checkpoints" / NEWEST).rename(alone)
    assert find_checkpoint(alone)[0] == alone
    with pytest.raises(ConfigError, match="best lies in no run's folder"):
        RunFolder.of(alone)
    assert {path.name for path in alone.iterdir()} == {"manifest.json", "run.json", "learner.safetensors"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "it is empty"), (".", "dots alone"), ("..", "dots alone"), ("a/b", "no slashes"), ("a\\b", "no slashes"),
        ("a\0b", "cannot be shown"), ("a\nb", "cannot be shown"), ("a\x1b[31m", "cannot be shown"),
        ("\udcff", "cannot be shown"), (" a", "a space"), ("-x", "an option"), ("~", "a home"), ("a$b", "a variable"),
        ("x" * 300, "300 bytes"), ("ü" * 101, "202 bytes"), ("suites", "something else"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_a_folders_is_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"name is .*{why}.*; choose another"):
        checked_name("name", name)


def test_home_and_variables_are_replaced_and_what_is_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    assert local_path("~/runs") == tmp_path / "runs"
    assert local_path(Path("$SCRATCH/runs")) == local_path("${SCRATCH}/runs") == tmp_path / "scratch" / "runs"
    assert local_path("a:b/c?d#e %20") == Path("a:b/c?d#e %20")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a$NOT_THERE" / "b$SCRATCH").mkdir(parents=True)  # as they may be named already
    assert local_path("a$NOT_THERE/b$SCRATCH") == Path("a$NOT_THERE/b$SCRATCH")
    for given, why in (
        ("s3://bucket/runs", "no folder of this machine"),
        ("gs://bucket", "no folder of this machine"),
        ("file:///tmp/runs", "no folder of this machine"),
        (Path("s3://bucket/runs"), "no folder of this machine"),
        ("$NOT_THERE/runs", "NOT_THERE, which is not set"),
        ("~nobody-of-that-name/runs", "a home directory that is not known"),
        ("a\0b", "NUL"),
    ):
        with pytest.raises(ValueError, match=why):
            local_path(given)


def new(root: Path, name: str = "a") -> RunFolder:
    return RunFolder.new(load_config(None, [f"checkpoint.root={root}", f"name={name}"]), None)


def test_a_folder_is_tried_out_and_nothing_is_left(tmp_path: Path) -> None:
    assert new(tmp_path / "x" / "y").path == tmp_path / "x" / "y" / "a"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x" / "y" / "a").mkdir(parents=True)
    with pytest.raises(ConfigError, match="exists already; choose another name"):
        new(tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y" / "a").is_dir()


def test_a_runs_folder_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RunFolder(tmp_path / "runs" / "a").create()
    finally:
        os.umask(before)
    assert (tmp_path / "runs" / "a").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dangling").symlink_to("/scratch/not/mounted")
    (tmp_path / "file").write_text("")
    for root, why in (
        ("dangling", "dangling is a link to /scratch/not/mounted, which is not there; mount or make that"),
        ("file", "file is a file; move that"),
        ("file/deeper", "file is a file; move that"),
        ("/proc/mneme", "cannot be written .*; name a folder that can be written"),
        ("x" * 300, "cannot be written .File name too long.; name a folder"),
    ):
        with pytest.raises(OSError, match=why) as failure:
            new(tmp_path / root)
        assert "[Errno" not in str(failure.value)
    (tmp_path / "a").symlink_to("/nowhere")
    with pytest.raises(OSError, match="a is a link to /nowhere, which is not there"):
        new(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="its disk is full .No space left on device.; make room"):
        new(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, notes: list[str]
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)
    RunFolder(tmp_path).lock().close()
    assert len(notes) == 1
    assert "has no locks" in notes[0]


def test_a_rewind_that_finds_no_room_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.append(step, {"return": 0.5})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("mneme.storage.files.opened", full)
        with pytest.raises(OSError, match="its disk is full"):
            folder.rewind(1)
    assert [row["step"] for row in folder.history()] == [1, 2, 3]
    folder.rewind(1)
    assert [row["step"] for row in folder.history()] == [1]


def test_what_was_explained_is_not_explained_again(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^a sentence$"), explained(tmp_path):
        raise OSError("a sentence")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("name=run #3", None, "name", "run #3"),
        ("name=001", None, "name", "001"),
        ("name=12:30", None, "name", "12:30"),
        ("name=a: b", None, "name", "a: b"),
        ("name=[red]x", None, "name", "[red]x"),
        ("name='quoted #1'", None, "name", "quoted #1"),
        ("name=null", None, "name", None),
        ("checkpoint.root=~/runs #2", "checkpoint", "root", "~/runs #2"),
        ("env.kwargs.title=a #3", "env", "kwargs", {"title": "a #3"}),
        ("env.kwargs.title='a #3'", "env", "kwargs", {"title": "a #3"}),
        ("env.kwargs={a: 1}", "env", "kwargs", {"a": 1}),
    ],
)
def test_a_value_on_the_command_line_is_read_as_a_whole(
    override: str, section: str | None, key: str, value: Any
) -> None:
    config = load_config(None, [override])
    assert getattr(getattr(config, section) if section else config, key) == value


def test_a_command_for_a_run_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shlex.split(pasted(tmp_path / "runs" / "my run é")) == ["runs/my run é"]
    assert pasted(Path("/elsewhere/run")) == "/elsewhere/run"
