"""What a run says of actors whose state its checkpoint lacks."""

from pathlib import Path

import pytest

from mneme.configuration.config import load_config
from mneme.distributed.runners import LocalRunner, RunState
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        (1, "new episodes of 1 of its 2 rollout actors, which were not there at the checkpoint"),
        (0, "new episodes: the state of its environment cannot be read"),
    ],
)
def test_actors_that_were_away_are_told_from_an_environment_without_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str], present: int, sentence: str
) -> None:
    whole = LocalRunner.state

    def state(self: LocalRunner) -> RunState:
        learner, workers = whole(self)
        return RunState(learner, [worker if i < present else None for i, worker in enumerate(workers)])

    monkeypatch.setattr(LocalRunner, "state", state)
    config = load_config(
        None,
        [f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=16",
         "rollout.num_workers=2", "learner.num_threads=1", "env.kwargs={horizon: 6}",
         "policy.controller.hidden_size=8", "policy.controller.backend=torch", "policy.controller.kind=mlp",
         "rollout.unroll_length=7", "train.total_timesteps=112", "train.evaluation_episodes=16"],
    )  # fmt: skip
    run = train(config, local=True, progress=False)
    resume(run.folder, "train.total_timesteps=224", local=True, progress=False)
    assert f"this run resumes with {sentence}" in notes
