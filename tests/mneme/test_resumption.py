"""What may change of a run that goes on, and what is said of one that is done."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mneme
from mneme.callbacks import Look
from mneme.distributed.config import ConfigError
from mneme.distributed.runners import LocalRunner
from mneme.resumption import NothingLeft
from mneme.storage.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from mneme.storage.holding import STATE
from mneme.storage.run_folder import RunFolder
from mneme.training import resume, train
from tests.mneme.test_looks import Looks, config

pytestmark = pytest.mark.usefixtures("undrawn")

SOLVED = r"has solved its task at step 336: success 0\.9.*, where train.stop_success asks for 0.9; .*=null trains on"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks(0.95)
    monkeypatch.setattr(LocalRunner, "evaluate", lambda *arguments: made.evaluate(*arguments))
    return made


def solved(root: Path, *overrides: str) -> mneme.Run:
    """A run that ends at step 336, as it is looked at there for the first time."""
    return train(
        config(root, "train.stop_success=0.9", "train.evaluate_every=336", *overrides), local=True, progress=False
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    return find_checkpoint(folder)[1].arrays["learner"]


# A checkpoint at the step of the first look, which comes before it; one of an earlier step, so that the last is written
# when all is over.
@pytest.mark.parametrize("every", [100_000, 224])
@pytest.mark.parametrize("changes", [(), ("train.total_timesteps=2240",), ("train.stop_success=0.5",)])
def test_a_run_that_has_solved_its_task_says_so_and_is_left_alone(
    tmp_path: Path, looks: Looks, every: int, changes: tuple[str, ...]
) -> None:
    run = solved(tmp_path, f"checkpoint.every={every}")
    before = len(looks.seeds), (run.folder / "metrics.jsonl").read_text(), (run.folder / STATE).read_text()
    with pytest.raises(NothingLeft, match=SOLVED if "0.5" not in str(changes) else "asks for 0.5"):
        resume(run.folder, *changes, local=True, progress=False)
    assert before == (
        len(looks.seeds), (run.folder / "metrics.jsonl").read_text(), (run.folder / STATE).read_text()
    )  # fmt: skip


@pytest.mark.parametrize("every", [100_000, 224])
@pytest.mark.parametrize("change", ["train.stop_success=null", "train.stop_success=1.0"])
def test_without_its_goal_or_with_a_higher_one_it_trains_on_to_the_bits_of_a_run_that_never_stopped(
    tmp_path: Path, looks: Looks, every: int, change: str
) -> None:
    run = solved(tmp_path / "a", f"checkpoint.every={every}")
    longer = resume(run.folder, change, local=True, progress=False)
    straight = train(config(tmp_path / "b", change, "train.evaluate_every=336"), local=True, progress=False)
    assert longer.steps == straight.steps == 1120
    assert weights(longer.folder).keys() == weights(straight.folder).keys()
    for name, array in weights(longer.folder).items():
        np.testing.assert_array_equal(array, weights(straight.folder)[name], err_msg=name)
    best = [find_checkpoint(folder)[1].run["best"] for folder in (longer.folder, straight.folder)]
    assert best[0] == best[1]
    with pytest.raises(
        NothingLeft, match=r"is complete at step 1,120; to train for longer, give train.total_timesteps"
    ):
        resume(longer.folder, local=True, progress=False)


def test_fewer_steps_than_it_has_trained_are_refused_by_their_number(tmp_path: Path) -> None:
    run = train(config(tmp_path, "checkpoint.every=224", "checkpoint.keep=9"), local=True, progress=False)
    earlier = run.folder / "checkpoints" / "step-000000000448"
    with pytest.raises(
        NothingLeft,
        match=r"stands at step 448 and train.total_timesteps is 112, .*leave it out: the run's own is 1,120",
    ):
        resume(earlier, "train.total_timesteps=112", local=True, progress=False)


def test_an_earlier_checkpoint_of_a_solved_run_is_trained_on_again(tmp_path: Path, looks: Looks) -> None:
    run = solved(tmp_path, "checkpoint.every=224")
    first, last = list_checkpoints(run.folder / "checkpoints")
    again = resume(first, local=True, progress=False)
    assert again.steps == 336
    assert again.evaluation is not None
    assert looks.seeds == 2 * [look.seed(0, 336) for look in (Look.EVALUATION, Look.CONFIRMATION, Look.RESULT)]
    assert load_checkpoint(last).run["steps"] == 336


def test_a_run_that_failed_when_its_result_was_told_has_solved_its_task_too(tmp_path: Path, looks: Looks) -> None:
    class Careless(mneme.Callback):
        def on_evaluation(self, progress: Any, evaluation: Any, look: Look) -> None:
            if look is Look.RESULT:
                raise KeyError("careless")

    asked = config(tmp_path, "train.stop_success=0.9", "train.evaluate_every=336", "checkpoint.every=224")
    with pytest.raises(KeyError):
        train(asked, local=True, progress=False, callbacks=[Careless()])
    with pytest.raises(NothingLeft, match=SOLVED):
        resume(tmp_path / "run", "train.total_timesteps=2240", local=True, progress=False)


def test_with_retries_a_solved_run_ends_well_and_trains_on_once_its_goal_is_lifted(
    tmp_path: Path, looks: Looks, notes: list[str]
) -> None:
    asked = ["train.stop_success=0.9", "train.evaluate_every=336"]
    for total in (1120, 2240):
        longer = config(tmp_path, *asked, f"train.total_timesteps={total}")
        again = train(longer, local=True, go_on=True, progress=False)
        assert again.steps == 336
    assert again.evaluation is None
    assert any("has solved its task at step 336" in note for note in notes)
    lifted = config(tmp_path, *asked, "train.stop_success=null")
    assert train(lifted, local=True, go_on=True, progress=False).steps == 1120
    assert train(lifted, local=True, go_on=True, progress=False).evaluation is None


def test_the_same_from_python_and_settings_that_may_not_change(tmp_path: Path, looks: Looks) -> None:
    run = solved(tmp_path)
    with pytest.raises(ConfigError, match="seed=1 is given, but a run goes on with its own settings; those that may"):
        mneme.resume(run, "seed=1", local=True, progress=False)
    with pytest.raises(ConfigError, match="train.stop_success is 2"):
        mneme.resume(run, "train.stop_success=2", local=True, progress=False)
    with pytest.raises(ConfigError, match="has solved its task"):
        mneme.resume(run, total_timesteps=run.steps + 112, local=True, progress=False)
    more = mneme.resume(run, "train.stop_success=null", total_timesteps=run.steps + 112, local=True, progress=False)
    assert more.steps == run.steps + 112
    assert "stop_success: null" in RunFolder(run.folder).config.read_text()
