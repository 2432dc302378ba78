"""What a mirror keeps, who may read it, and what may lie there before."""

import os
import shutil
from pathlib import Path

import pytest

from mneme.distributed.config import ConfigError
from mneme.storage import mirror
from mneme.storage.checkpoint import list_checkpoints, save_checkpoint, step_of
from mneme.storage.run_folder import RunFolder
from mneme.training import train
from tests.mneme.storage.test_mirror import small

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_is_kept_there_if_it_is_here(tmp_path: Path, keep_best: bool) -> None:
    overrides = ["train.evaluate_every=32", "checkpoint.keep=1", f"checkpoint.keep_best={keep_best}"]
    config = small(tmp_path / "runs", f"file://{tmp_path}/there", *overrides)
    run = RunFolder(tmp_path / "runs" / "a")
    copying = mirror.Mirror(config, run, None)
    for step in (32, 64):
        record = {"best": {"step": 32, "score": [0.0, 1.0]}}
        copying._newest = save_checkpoint(run.checkpoints, step, record, {"learner": {}}, 9)
        assert copying._attempt() == ""
    there = list_checkpoints(tmp_path / "there" / "a" / "checkpoints")
    assert list(map(step_of, there)) == ([32, 64] if keep_best else [64])


def test_a_mirror_in_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        mirror.Mirror(small(tmp_path, f"file://{tmp_path}/there"), RunFolder(tmp_path / "a"), None)
    finally:
        os.umask(before)
    assert (tmp_path / "there" / "a").stat().st_mode & 0o777 == 0o700


def test_a_beginning_without_a_whole_checkpoint_is_in_nobodys_way(tmp_path: Path) -> None:
    there = tmp_path / "there" / "a"
    (there / "checkpoints" / "step-000000000096").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/step-000000000096/learner.safetensors"):
        (there / name).write_text("")
    config = small(tmp_path / "runs", f"file://{tmp_path}/there", "train.total_timesteps=64")
    train(config, local=True, progress=False)
    assert list(map(step_of, list_checkpoints(there / "checkpoints"))) == [32, 64]
    shutil.rmtree(there / "checkpoints")
    (there / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="there/a exists already; choose another name"):
        mirror.Mirror(config, RunFolder(tmp_path / "b" / "a"), None)
