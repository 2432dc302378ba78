"""A run that starts from the weights of another."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mneme.configuration.config import Config, load_config
from mneme.controllers import Weights
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.runners import LocalRunner
from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.run_folder import RunFolder
from mneme.storage.starting import as_begun, started
from mneme.training import Run, resume, train
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = pytest.mark.usefixtures("undrawn")


def small(root: Path, *overrides: str) -> Config:
    """Updates of 112 steps, each with a checkpoint."""
    base = [
        f"checkpoint.root={root}", "name=run", "tracking.enabled=false", "rollout.num_envs=16",
        "env.kwargs.horizon=6", "policy.controller.hidden_size=16", "train.total_timesteps=224", "checkpoint.every=112",
        "train.evaluation_episodes=16", "learner.num_threads=1", "learner.num_epochs=1",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Also copied to a mirror."""
    root = tmp_path_factory.mktemp("first")
    return train(small(root, f"checkpoint.mirror=file://{root}/mirror"), local=True, progress=False)


def learned(run: Run) -> dict[str, np.ndarray]:
    """The weights that it ended with."""
    prefix = "learner/policy."
    arrays = last_arrays(run.folder)
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def started_with(config: Config) -> Weights:
    """The weights that the parts of a new run are built with."""
    runner = LocalRunner(started(make_blueprint(config)))
    try:
        return runner._weights
    finally:
        runner.close()


def test_a_run_starts_from_all_the_weights_of_another(first: Run, tmp_path: Path) -> None:
    weights = started_with(small(tmp_path, "seed=1", f"train.start_from={first.folder}"))
    assert weights.version == 0
    assert_same_bits(dict(weights.arrays), learned(first))
    earlier = list_checkpoints(first.folder / "checkpoints")[0]
    weights = started_with(small(tmp_path, f"train.start_from={earlier}"))
    assert weights.digest() != Weights(0, learned(first)).digest()


def test_it_may_take_the_sequence_model_alone(first: Run, tmp_path: Path) -> None:
    settings = ["policy.heads=[8]", "seed=1", "env.id=mneme/DelayedCue-v0"]
    weights = started_with(small(tmp_path, *settings, f"train.start_from={first.folder}", "train.start_part=core"))
    fresh = started_with(small(tmp_path, *settings))
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(array, (learned(first) if name.startswith("controller.") else fresh.arrays)[name])
    assert any(name.startswith("controller.") for name in weights.arrays)


def test_its_optimizer_is_fresh_and_its_folder_says_where_it_is_from(
    first: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mneme")
    run = train(small(tmp_path, f"train.start_from={first.folder}"), local=True, progress=False)
    steps = [array for name, array in last_arrays(run.folder).items() if name.startswith("learner/adam.step")]
    others = [array for name, array in last_arrays(first.folder).items() if name.startswith("learner/adam.step")]
    np.testing.assert_array_equal(steps, others)  # of as many updates
    newest = list_checkpoints(first.folder / "checkpoints")[-1]
    assert load_config(RunFolder(run.folder).config).train.start_from == str(newest)
    assert f"this run starts from the weights of {newest}, with a fresh optimizer" in caplog.text


def test_a_run_goes_on_without_what_it_began_from(first: Run, tmp_path: Path) -> None:
    source = shutil.copytree(first.folder, tmp_path / "source")
    config = small(tmp_path, f"train.start_from={source}")
    straight = train(config.model_copy(update={"name": "straight"}), local=True, progress=False)
    run = train(config.changed("train", total_timesteps=112), local=True, progress=False)
    shutil.rmtree(source)
    again = train(config, local=True, go_on=True, progress=False)  # by the name that the user knows
    assert again.folder == run.folder
    assert again.steps == 224
    assert_same_bits(last_arrays(straight.folder), last_arrays(again.folder))
    assert resume(run.folder, "train.total_timesteps=336", local=True, progress=False).steps == 336
    other = config.changed("train", start_from=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="was begun with train.start_from="):
        train(other, local=True, go_on=True, progress=False)


def test_a_mirrors_uri_is_brought_home_and_recorded(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"file://{first.folder.parent}/mirror/run"
    blueprint = started(make_blueprint(small(tmp_path, f"train.start_from={uri}")))
    assert blueprint.weights is not None
    assert_same_bits(dict(blueprint.weights.arrays), learned(first))
    assert blueprint.config.train.start_from == f"{uri}/checkpoints/step-000000000224"
    assert (tmp_path / "runs/run/checkpoints/step-000000000224").is_dir()
    given = small(tmp_path, f"train.start_from={uri}")
    assert as_begun(given, blueprint.config).train.start_from == blueprint.config.train.start_from


@pytest.mark.parametrize(
    ("given", "begun", "same"),
    [
        ("s3://b/runs/a?region=x", "s3://b/runs/a/checkpoints/step-000000000224?region=x", True),
        ("s3://b/runs/a/?region=x", "s3://b/runs/a/checkpoints/step-000000000224?region=x", True),
        ("s3://b/runs/a/checkpoints?region=x", "s3://b/runs/a/checkpoints/step-000000000224?region=x", True),
        ("s3://b/runs/a?region=y", "s3://b/runs/a/checkpoints/step-000000000224?region=x", False),
        ("s3://b/runs/aa?region=x", "s3://b/runs/a/checkpoints/step-000000000224?region=x", False),
        ("s3://b/runs/a", "s3://b/runs/a/checkpoints/step-000000000224", True),
        ("/runs/a", "/runs/a/checkpoints/step-000000000224", True),
        ("/runs/a/", "/runs/a/checkpoints/step-000000000224", True),
        ("/runs/b", "/runs/a/checkpoints/step-000000000224", False),
    ],
)
def test_what_a_run_began_from_is_known_again_by_what_was_given(
    tmp_path: Path, given: str, begun: str, same: bool
) -> None:
    found = as_begun(small(tmp_path, f"train.start_from={given}"), small(tmp_path, f"train.start_from={begun}"))
    assert found.train.start_from == (begun if same else given)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["policy.controller.hidden_size=8"],
            r"whose weights do not fit: controller\.\w+ is \[.*\] there and \[.*\] here",
        ),
        (
            ["policy.controller.hidden_size=8"],
            r"do not fit: controller.*; give this run the policy, the observations and the actions of that one$",
        ),
        (
            ["policy.heads=[4]", "policy.controller.hidden_size=8"],
            r"do not fit: policy_hidden.*; give this run the policy, the observations and the actions of that one$",
        ),
        (["policy.heads=[4]"], r"policy_hidden\.0\.\w+ is missing there; .* set train.start_part=core to take its seq"),
        (
            ["policy.encoder=[7]", "train.start_part=core"],
            r"controller\.weight_ih is .* there .*same policy.encoder they are",
        ),
        (["policy.controller.kind=lstm"], r"do not fit: "),
        (
            ["policy.controller.kind=mlp", "train.start_part=core"],
            r"controller.* is missing there; give this run the po",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(first: Run, tmp_path: Path, overrides: list[str], sentence: str) -> None:
    config = small(tmp_path, f"train.start_from={first.folder}", *overrides)
    with pytest.raises(ConfigError, match=f"train.start_from is .*{sentence}") as refusal:
        started(make_blueprint(config))
    assert "\n" not in str(refusal.value)


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    config = small(tmp_path, f"train.start_from={tmp_path}/nothing")
    with pytest.raises(ConfigError, match=r"train.start_from is .*nothing: there is no run at .*nothing"):
        train(config, local=True, progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="train.start_part is 'core'; it is a part of train.start_from; set that"):
        small(tmp_path, "train.start_part=core")
