"""Files of a checkpoint that are changed in any way are refused in one sentence or mean the same; no code ever runs."""

import json
import pickle
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mneme.configuration.config import load_config
from mneme.storage.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mneme.storage.restoring import load_run
from tests.mneme.storage.test_restoring import signed

LEARNER = {"policy.w": np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6), "version": np.array(3)}
WORKER = {"keys": np.array([2**63 + 1, 5], dtype=np.uint64), "reset": np.array([True, False])}
MOST_MEMORY = 64 << 20  # bytes: a thousand times what the files hold

Change = Callable[[random.Random, Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = {
        "steps": 1, "episodes": 0, "config": load_config().to_dict(), "resumes_exactly": True, "tracking_run": None,
    }  # fmt: skip
    parts = {"learner": LEARNER, "worker-0": WORKER}
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints", 1, json.loads(json.dumps(run)), parts, 1)


def flip(draw: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def cut(draw: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def lengthen(draw: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes() + draw.randbytes(draw.choice([1, 8, 1000])))


def reorder(draw: random.Random, file: Path) -> None:
    data = file.read_bytes()
    i, j, k = sorted(draw.randrange(len(data)) for _ in range(3))
    file.write_bytes(data[:i] + data[j:k] + data[i:j] + data[k:])


def repeat(draw: random.Random, file: Path) -> None:
    data = file.read_bytes()
    i = draw.randrange(len(data))
    file.write_bytes(data[:i] + data[i : i + 40] * draw.randint(2, 50) + data[i + 40 :])


def oversize_header(draw: random.Random, file: Path) -> None:
    size = draw.choice([0, 1, 2**24, 2**31, 2**32 + 8, 2**40, 2**63, 2**64 - 1])
    file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])


def nest(draw: random.Random, file: Path) -> None:
    opening = draw.choice(["[", '{"a":', '{"a":[', "[[1],"])
    file.write_text(opening * draw.choice([10, 2000, 200_000]))


def strange_number(draw: random.Random, file: Path) -> None:
    text = file.read_bytes().decode(errors="replace")
    number = draw.choice(["1e999", "-0", "NaN", "Infinity", "9" * 5000, "null", '"' + "x" * 1000 + '"', "{}", "[]"])
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    i = draw.choice(digits) if digits else 0
    file.write_bytes((text[:i] + number + text[i + 1 :]).encode())


def swap(draw: random.Random, file: Path) -> None:
    other = draw.choice([path for path in file.parent.iterdir() if path != file])
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


def link(draw: random.Random, file: Path) -> None:
    target = draw.choice([file.parent.parent / "elsewhere", Path("/dev/zero"), Path("/etc/passwd"), file.parent, file])
    if target.name == "elsewhere":
        shutil.copy(file, target)
    file.unlink()
    file.symlink_to(target)


def folder(draw: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def remove(draw: random.Random, file: Path) -> None:
    file.unlink()


def code(draw: random.Random, file: Path) -> None:
    """What would end the test if it were run, in each form that something might run."""
    yaml = "!!python/object/apply:os._exit [7]"
    config = json.dumps({"config": {"env": {"!yaml": yaml}, "name": yaml}})
    forms = [pickle.dumps(exec), b"cposix\n_exit\n(I7\ntR.", b"import os; os._exit(7)", yaml.encode(), config.encode()]
    file.write_bytes(draw.choice(forms))


CHANGES: list[Change] = [
    flip, cut, lengthen, reorder, repeat, oversize_header, nest, strange_number, swap, link, folder, remove, code,
]  # fmt: skip


@pytest.fixture
def bounded() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("forged", "rounds"), [(False, 390), (True, 65), pytest.param(True, 1300, marks=pytest.mark.slow)]
)
def test_whatever_is_changed_is_refused_or_means_the_same(
    whole: Path, tmp_path: Path, forged: bool, rounds: int, bounded: None
) -> None:
    """A manifest that fits lets changes through to what reads the files; then they may mean something else."""
    draw, original, refused = random.Random(7), load_checkpoint(whole), set()
    for round in range(rounds):
        path = tmp_path / f"step-{round:012d}"
        shutil.copytree(whole, path)
        names = sorted(file.name for file in path.iterdir() if not (forged and file.name == "manifest.json"))
        change, name = CHANGES[round % len(CHANGES)], draw.choice(names)
        change(draw, path / name)
        if forged and all(file.is_file() for file in path.iterdir()):
            signed(path)
        try:
            loaded = load_checkpoint(path)
            load_run(path, trust=False)
        except CheckpointError as error:
            assert "\n" not in str(error), (change.__name__, name)
            assert str(path) in str(error)
            refused.add(change.__name__)
        else:
            if not forged:
                assert loaded.run == original.run
                for part, arrays in original.arrays.items():
                    for key, array in arrays.items():
                        np.testing.assert_array_equal(loaded.arrays[part][key], array)
        if path.is_dir():
            shutil.rmtree(path)
    assert refused == {change.__name__ for change in CHANGES}
