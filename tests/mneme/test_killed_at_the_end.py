"""A run that is killed while it looks at its result comes to the result of one that is not."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mneme.active_run import ActiveRun
from mneme.callbacks import Look
from mneme.configuration.config import Config, load_config
from mneme.distributed.runners import LocalRunner
from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.holding import STATE, read_state
from mneme.storage.run_folder import RunFolder
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")

SOLVED, ALL_STEPS = ("train.stop_success=0.01",), ("train.stop_success=null",)


def config(root: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [f"checkpoint.root={root}", "name=run", "tracking.enabled=false", "rollout.num_envs=16",
         "learner.num_threads=1", "env.kwargs={horizon: 6}", "policy.controller.hidden_size=8",
         "train.total_timesteps=560", "train.evaluate_every=112", "train.evaluation_episodes=64",
         "learner.num_epochs=1", "learner.num_minibatches=1", "rollout.unroll_length=7", "checkpoint.every=224",
         "policy.controller.backend=torch", "policy.controller.kind=mlp", *overrides],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def solved_between_two_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = ActiveRun._reached
    monkeypatch.setattr(ActiveRun, "_reached", lambda run, look: reached(run, look) and run.steps >= 336)


def killed(asked: Config, when: str) -> RunFolder:
    """The folder of a run that was killed before it had its result, or right after that was recorded."""
    evaluate, folder = LocalRunner.evaluate, RunFolder(Path(asked.checkpoint.root) / "run")

    def dies(self: LocalRunner, episodes: int, seed: int) -> Any:
        steps = [row["step"] for row in folder.history()][-1]
        if seed == Look.RESULT.seed(asked.seed, steps) and when == "before":
            raise SystemExit(137)
        return evaluate(self, episodes, seed)

    def dies_after(self: RunFolder, step: int, row: dict[str, float]) -> None:
        append(self, step, row)
        before = self.history()[-2:-1]
        if "evaluation/success" in row and before and before[0]["step"] == step:
            confirmed = "confirmation/success" in before[0] or step == asked.train.total_timesteps
            if confirmed and when == "after":
                raise SystemExit(137)

    append = RunFolder.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalRunner, "evaluate", dies)
        patch.setattr(RunFolder, "append", dies_after)
        with pytest.raises(SystemExit):
            train(asked, local=True, progress=False)
    state = folder.path / STATE
    state.write_text(state.read_text().replace('"failed"', '"training"'))
    return folder


def rows(folder: RunFolder) -> list[dict[str, float]]:
    looks = ("evaluation/", "confirmation/")
    return [
        {key: value for key, value in row.items() if key in ("step", "return") or key.startswith(looks)}
        for row in folder.history()
    ]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("retried", [True, False])
@pytest.mark.parametrize("how", [SOLVED, ALL_STEPS])
def test_a_run_killed_at_its_result_ends_with_that_of_an_unkilled_one(
    tmp_path: Path, how: tuple[str, ...], retried: bool, when: str
) -> None:
    whole = train(config(tmp_path / "whole", *how), local=True, progress=False)
    asked = config(tmp_path / "killed", *how)
    folder = killed(asked, when)
    go_on = partial(train, asked, go_on=True) if retried else partial(resume, folder.path)
    again = go_on(local=True, progress=False)
    assert whole.steps == (336 if how is SOLVED else 560)
    assert (again.steps, again.interrupted) == (whole.steps, False)
    assert again.evaluation is not None
    assert whole.evaluation is not None
    assert again.evaluation.mean_return == whole.evaluation.mean_return
    assert rows(folder) == rows(RunFolder(whole.folder))
    state = read_state(folder.path)
    assert state is not None
    assert state.state == "complete"
    names = [[path.name for path in list_checkpoints(each / "checkpoints")] for each in (folder.path, whole.folder)]
    assert names[0] == names[1]
    assert train(asked, local=True, go_on=True, progress=False).evaluation is None


def test_more_steps_are_trained_all_the_same(tmp_path: Path) -> None:
    folder = killed(config(tmp_path, *ALL_STEPS), "before")
    longer = resume(folder.path, "train.total_timesteps=784", local=True, progress=False)
    assert (longer.steps, longer.interrupted) == (784, False)
