"""What a URI names is brought home whole, into a folder that is the run's, or refused in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mneme
from mneme.callbacks import Callback
from mneme.cli import main
from mneme.distributed.config import ConfigError
from mneme.storage import fetching
from mneme.storage.checkpoint import CheckpointError, find_checkpoint, list_checkpoints
from mneme.storage.fetching import Source, brought_home, source_of
from mneme.storage.run_folder import RunFolder
from mneme.storage.store import Store
from mneme.training import resume, train
from tests.mneme.storage.s3_server import S3Server
from tests.mneme.storage.test_mirror import small

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a mirror `there`, and the run `runs/a` that it is of."""
    root = tmp_path_factory.mktemp("finished")
    train(small(root / "runs", f"file://{root}/there", "checkpoint.keep=9"), local=True, progress=False)
    return root


@pytest.fixture
def there(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the mirrored run, to be changed; one stands in another folder."""
    shutil.copytree(finished / "there", tmp_path / "there")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there" / "a"


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("runs/a", None),
        ("s3://b/runs/a", Source("s3://b/runs/a", "a", None)),
        (Path("s3://b/runs/a"), Source("s3://b/runs/a", "a", None)),
        ("s3://b/runs/a/", Source("s3://b/runs/a", "a", None)),
        ("s3://b/runs/a/checkpoints", Source("s3://b/runs/a", "a", None)),
        ("s3://b/runs/a/checkpoints/step-000000000064", Source("s3://b/runs/a", "a", 64)),
        ("s3://b/a/checkpoints/step-000000000064/run.json?region=x", Source("s3://b/a?region=x", "a", 64)),
        ("file:///mnt/a", Source("file:///mnt/a", "a", None)),
        (Path("file:///mnt/a"), Source("file:///mnt/a", "a", None)),
    ],
)
def test_a_uri_names_a_run_or_a_checkpoint(given: Any, source: Source | None) -> None:
    assert source_of(given) == source


def test_every_way_of_loading_takes_a_uri(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"file://{there}"
    assert mneme.load(uri).path == Path("runs/a/checkpoints/step-000000000128").absolute()
    assert mneme.evaluate(f"{uri}/checkpoints/step-000000000064", episodes=4).episodes == 4
    assert [path.name[-3:] for path in list_checkpoints(Path("runs/a/checkpoints"))] == ["064", "128"]
    assert main(["evaluate", uri, "--episodes", "4"]) == 0
    assert "over 4 episodes" in capsys.readouterr().out
    own = f"file://{there.parent}/own"
    train(small(there.parent / "runs", own, "name=b", "train.total_timesteps=32"), local=True, progress=False)
    again = mneme.resume(f"{own}/b", total_timesteps=64, local=True, progress=False)
    assert (again.steps, again.folder) == (64, Path("runs/b").absolute())
    assert main(["train", "--resume", f"{own}/b", "--local", "train.total_timesteps=96"]) == 0
    assert "evaluate with: mneme evaluate runs/b" in capsys.readouterr().out


def test_a_run_comes_home_private_and_whole(there: Path) -> None:
    assert brought_home(Path(f"file://{there}")) == Path("runs/a").absolute()
    assert Path("runs/a").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in Path("runs").iterdir()] == ["a"]
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/step-000000000128/run.json"):
        assert (Path("runs/a") / name).read_bytes() == (there / name).read_bytes()


def test_what_a_kill_has_left_of_another_try_is_taken_away(there: Path) -> None:
    """Unless another process is at it, or it is another run's."""
    left, held, others = (
        Path("runs") / name for name in (".a-12345678.part", ".a-abcd_fgh.part", ".a-b-12345678.part")
    )
    for folder in (left, held, others):
        (folder / "checkpoints").mkdir(parents=True)
    with fetching._locked(held):
        brought_home(Path(f"file://{there}"))
    assert {path.name for path in Path("runs").iterdir()} == {"a", held.name, others.name}


def test_what_is_under_way_is_held_until_it_is_home(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, seen = Store.fetch, list[Path]()

    def watched(self: Store, name: str, target: Path) -> None:
        seen.extend(Path("runs").iterdir())
        with pytest.raises(BlockingIOError), fetching._locked(seen[-1]):
            pytest.fail("two hold it")
        fetch(self, name, target)

    monkeypatch.setattr(Store, "fetch", watched)
    brought_home(Path(f"file://{there}"))
    assert all(path.match(f".a-{fetching._RANDOM}{fetching._PART}") for path in seen)


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "no manifest", "bad manifest", "a name above", "without end", "missing"]
)
def test_a_damaged_checkpoint_there_is_passed_over(there: Path, damage: str, notes: list[str]) -> None:
    newest = there / "checkpoints" / "step-000000000128"
    learner, manifest = newest / "learner.safetensors", newest / "manifest.json"
    if damage == "flip":
        learner.write_bytes(learner.read_bytes()[:-3] + b"abc")
    elif damage == "cut":
        learner.write_bytes(learner.read_bytes()[:-3])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "bad manifest":
        manifest.write_text("[" * 100_000)
    elif damage == "a name above":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"../../config.yaml": "0"}))
    elif damage == "without end":
        learner.unlink()
        learner.symlink_to("/dev/zero")
    else:
        learner.unlink()
    brought_home(Path(f"file://{there}"))
    assert [path.name for path in list_checkpoints(Path("runs/a/checkpoints"))] == ["step-000000000096"]
    assert [path.name for path in Path("runs").iterdir()] == ["a"]
    assert (damage == "no manifest") == (not [note for note in notes if "trying the one before it" in note])


def test_where_nothing_is_whole_that_is_said(there: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there/a holds no checkpoint of step 33 that is whole"):
        brought_home(Path(f"file://{there}/checkpoints/step-000000000033"))
    with pytest.raises(CheckpointError, match="there/b holds no checkpoint that is whole; give the URI of"):
        brought_home(Path(f"file://{there.parent}/b"))
    assert not list(Path("runs").iterdir())


def test_a_checkpoint_that_is_removed_meanwhile_gives_way_to_the_next(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on keeps one checkpoint, and replaces it each time just when it is about to be read."""
    names = [path.name for path in list_checkpoints(there / "checkpoints")]
    (there / "aside").mkdir()
    for name in names[1:]:
        (there / "checkpoints" / name).rename(there / "aside" / name)
    fetch = Store.fetch

    def late(self: Store, name: str, target: Path) -> None:
        if "run.json" in name and (there / "checkpoints" / names[0]).exists():
            (there / "aside" / names[1]).rename(there / "checkpoints" / names[1])
            shutil.rmtree(there / "checkpoints" / names[0])
        fetch(self, name, target)

    monkeypatch.setattr(Store, "fetch", late)
    brought_home(Path(f"file://{there}"))
    assert [path.name for path in list_checkpoints(Path("runs/a/checkpoints"))] == [names[1]]


def test_what_is_here_stands_in_the_way_where_it_is_more_or_another(there: Path, finished: Path) -> None:
    uri = Path(f"file://{there}")
    shutil.copytree(finished / "runs" / "a", "runs/a")
    newest = there / "checkpoints" / "step-000000000128"
    assert brought_home(uri) == Path("runs/a").absolute()  # they are the same
    kept = newest.rename(there / "newest")
    with pytest.raises(CheckpointError, match="runs/a has step 128 and is ahead of .*there/a, or differs .* 96; give"):
        brought_home(uri)
    assert brought_home(uri / "checkpoints/step-000000000064").samefile("runs/a/checkpoints/step-000000000064")
    kept.rename(newest)
    (newest / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="or differs from its step 128; give that folder, or move it"):
        brought_home(uri)
    shutil.copy("runs/a/checkpoints/step-000000000128/manifest.json", newest)
    shutil.rmtree("runs/a/checkpoints/step-000000000128")
    with RunFolder(Path("runs/a")).lock(), pytest.raises(ConfigError, match="another process is training in runs/a"):
        brought_home(uri)
    assert brought_home(uri) == Path("runs/a").absolute()  # which has caught up
    assert find_checkpoint(Path("runs/a"))[0].name == newest.name
    other = train(small(Path("other"), None, "train.total_timesteps=64"), local=True, progress=False)
    shutil.rmtree("runs/a")
    other.folder.rename("runs/a")
    with pytest.raises(CheckpointError, match="runs/a holds another run than .*there/a; move it, or start elsewhere"):
        brought_home(uri)
    shutil.rmtree("runs/a/checkpoints")
    with pytest.raises(CheckpointError, match="runs/a exists and holds no whole checkpoint of .*; move it"):
        brought_home(uri)


def test_only_a_mirror_that_its_user_has_named_is_gone_on_with_unasked(there: Path) -> None:
    copy = shutil.copytree(there, there.parent.parent / "copy" / "a")
    for given in (Path("runs/a"), Path(f"file://{copy}")):
        brought_home(Path(f"file://{there}"))
        with pytest.raises(CheckpointError, match=r"has checkpoint.mirror=file://.*there, where all .* \(trust=True\)"):
            resume(given, "train.total_timesteps=160", local=True, progress=False)


def test_a_store_that_goes_away_meanwhile_is_one_sentence(
    there: Path, server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{bucket}/runs{server.options}"
    train(small(tmp_path / "runs", uri), local=True, progress=False, callbacks=Callback())
    monkeypatch.setattr("mneme.storage.store._ATTEMPTS", 1)
    server.hook = lambda method, path: "run.json" in path
    with pytest.raises(CheckpointError, match="cannot be used") as error:
        brought_home(Path(f"s3://{bucket}/runs/a{server.options}"))
    assert "\n" not in str(error.value)
    assert not list(Path("runs").iterdir())
    assert fetching.source_of(Path("runs")) is None
