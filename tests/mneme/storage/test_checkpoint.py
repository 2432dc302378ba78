"""Checkpoints: exact, whole or absent, safe, rotated."""

import json
import pickle
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from mneme.distributed.config import ConfigError
from mneme.storage import checkpoint as module
from mneme.storage.checkpoint import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from mneme.storage.run_folder import RunFolder

PARTS = {
    "learner": {
        "weights": np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1).T,  # not contiguous
        "version": np.array(3),
    },
    "worker-0": {
        "reset": np.array([True, False]),
        "keys": np.array([2**63 + 1], dtype=np.uint64),
        "return": np.array([0.1, np.pi]),
    },
}


def save(root: Path, step: int, keep: int = 3) -> Path:
    return save_checkpoint(root / "checkpoints", step, {"steps": step, "config": {}}, PARTS, keep)


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path, 5))
    assert loaded.run["steps"] == 5
    assert loaded.arrays.keys() == PARTS.keys()
    for part, arrays in PARTS.items():
        for name, array in arrays.items():
            got = loaded.arrays[part][name]
            assert got.dtype == array.dtype
            assert got.shape == array.shape
            np.testing.assert_array_equal(got, array)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 20):
        save(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == [
        "step-000000000020",
        "step-000000000100",
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no manifest", "bad json", "empty manifest", "list"])
def test_a_damaged_one_is_passed_over_and_noted(tmp_path: Path, damage: str, notes: list[str]) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    victim = bad / "learner.safetensors"
    if damage == "flip":
        data = bytearray(victim.read_bytes())
        data[-3] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-5])
    elif damage == "remove":
        victim.unlink()
    elif damage == "no manifest":
        (bad / "manifest.json").unlink()
    elif damage == "empty manifest":
        (bad / "manifest.json").write_text("{}")
    elif damage == "list":
        (bad / "manifest.json").write_text("[]")
    else:
        (bad / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(bad)
    path, loaded = find_checkpoint(tmp_path)
    assert path == good
    assert loaded.run["steps"] == 1
    assert len(notes) == 1
    assert str(bad) in notes[0]


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="all of them are damaged"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no run at .*nowhere; name a run"):
        find_checkpoint(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_ones_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path, 1)

    def full(arrays: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")  # its own type, not an OSError

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [good.name]
    assert find_checkpoint(tmp_path)[0] == good


def test_one_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, put = save(tmp_path, 1), module.put

    def failing(path: Path, final: Path) -> None:
        if path.name.startswith(".partial"):
            raise OSError("the disk went away")
        put(path, final)

    monkeypatch.setattr(module, "put", failing)
    with pytest.raises(OSError, match="went away"):
        save(tmp_path, 1)
    assert list((tmp_path / "checkpoints").iterdir()) == [good]
    load_checkpoint(good)


def test_a_kill_while_writing_leaves_the_ones_before(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".partial-000000000002-123"
    half.mkdir()
    (half / "learner.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path)[0] == good
    with closing(RunFolder(tmp_path).lock()):
        assert not half.exists()
        half.mkdir()
        with pytest.raises(ConfigError, match="another process"):
            RunFolder(tmp_path).lock()
        assert half.exists(), "it is another's, who writes it"


def test_loading_never_runs_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('code ran')",))

    path = save(tmp_path, 1)
    (path / "learner.safetensors").write_bytes(pickle.dumps(Bomb()))
    sums = json.loads((path / "manifest.json").read_text())
    sums["learner.safetensors"] = module._sha256(path / "learner.safetensors")  # a forged, matching manifest
    (path / "manifest.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 99)
    path = save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)
