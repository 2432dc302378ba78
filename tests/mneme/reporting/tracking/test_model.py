"""The trained agent as an MLflow model: what is in it, how it acts, where it is found again."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import gymnasium as gym
import numpy as np
import pytest
import yaml

import mneme
from mneme.callbacks import Callback, Progress
from mneme.reporting.tracking import callback
from mneme.reporting.tracking.client import client_of
from mneme.reporting.tracking.model import ModelForm, _for_acting, log_model
from mneme.reporting.tracking.settings import TrackingSettings
from mneme.reporting.tracking.store_run import Identity, StoreRun
from mneme.reporting.tracking.story import Story
from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.retention import Best

SMALL = [
    "rollout.num_envs=8", "rollout.num_workers=1", "learner.num_minibatches=1", "learner.num_threads=1",
    "policy.controller.hidden_size=8", "train.total_timesteps=144", "train.evaluation_episodes=8",
    "train.evaluate_every=72", "env.kwargs.horizon=8", "tracking.system_metrics=false",
]  # fmt: skip


class Slowly(Callback):
    """Lets the tracking thread keep up, so that it sees every model."""

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        time.sleep(0.5)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def run(uri: str, tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> mneme.Run:
    """A run of two updates, evaluated after the first and at the end."""
    root = tmp_path_factory.mktemp("runs")
    store = [f"tracking.uri={uri}", "tracking.registered_model_name=cue", f"checkpoint.root={root}"]
    return mneme.train("delayed_cue", *SMALL, *store, local=True, progress=False, callbacks=[Slowly()])


@pytest.fixture(scope="module")
def stored(run: mneme.Run, uri: str) -> Any:
    """The run in the store."""
    (found,) = client_of(uri).search_runs(["1"])
    return found


@pytest.fixture
def chosen(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own functions use the store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def models(uri: str, stored: Any) -> list[Any]:
    """The run's models, oldest first."""
    found = client_of(uri).search_logged_models(["1"], f"source_run_id = '{stored.info.run_id}'")
    return sorted(found, key=lambda model: model.creation_timestamp)


def test_the_best_agent_is_a_model_with_everything_and_without_pickle(uri: str, stored: Any) -> None:
    model = next(model for model in models(uri, stored) if model.name == "best")
    folder = Path(model.artifact_location.removeprefix("file://"))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "MLmodel", "model_code.py", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json",
        "serving_input_example.json", "manifest.json", "run.json", "learner.safetensors",
    }  # fmt: skip
    described = yaml.safe_load((folder / "MLmodel").read_text())
    ins, outs = (json.loads(described["signature"][side]) for side in ("inputs", "outputs"))
    assert [port["name"] for port in ins] == ["observation", "reset", "carry.h"]
    assert [port["name"] for port in outs] == ["action", "next_carry.h"]
    assert ins[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 5]}
    requirements = (folder / "requirements.txt").read_text().split()
    assert any(line.startswith("torch==") and "+" not in line for line in requirements)
    assert any(line.startswith("mneme-rl==") for line in requirements)
    steps = {point.step for point in model.metrics}
    assert steps == {int(model.params["step"])}
    assert {point.key for point in model.metrics} >= {"evaluation/return", "evaluation/success"}
    assert model.params["controller"] == "gru"


def test_the_page_of_the_run_tells_how_far_it_came(stored: Any) -> None:
    note = stored.data.tags["mlflow.note.content"]
    assert note.startswith("**gru** on **mneme/DelayedCue-v0** (cues=4, horizon=8)")
    assert "**Result at step 144**: return " in note
    assert f"![learning curve](get-artifact?path=curve.png&run_uuid={stored.info.run_id})" in note
    assert (stored.data.tags["controller"], stored.data.tags["seed"]) == ("gru", "0")
    assert {"agent/return", "agent/success", "evaluation/return", "speed/steps_per_second"} <= set(stored.data.metrics)


def test_it_says_nothing_of_its_home(uri: str, stored: Any, run: mneme.Run) -> None:
    for model in models(uri, stored):
        folder = Path(model.artifact_location.removeprefix("file://"), "artifacts")
        (text,) = (path.read_text() for path in folder.rglob("run.json"))
        assert run.folder.name not in text
        assert "mlflow.db" not in text


def test_it_says_nothing_of_what_its_run_started_from(run: mneme.Run, tmp_path: Path) -> None:
    given = ["tracking.enabled=false", f"checkpoint.root={tmp_path}", f"train.start_from={run.folder}"]
    later = mneme.train("delayed_cue", *SMALL, *given, "train.start_part=core", local=True, progress=False)
    slim = _for_acting(list_checkpoints(later.folder / "checkpoints")[-1], tmp_path / "slim")
    assert run.folder.name not in (slim / "run.json").read_text()
    assert mneme.load(slim).policy.spec.actions.mask_size == 4


def test_it_carries_its_memory_from_call_to_call(stored: Any, chosen: None) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(f"runs:/{stored.info.run_id}/best")
    session = mneme.load(f"runs:/{stored.info.run_id}/best").session()
    given: dict[str, Any] = model.input_example
    env = gym.make("mneme/DelayedCue-v0", horizon=8)
    observation, reward, ended = env.reset(seed=3)[0], 0.0, False
    while not ended:
        expected = session.predict(observation, reward, ended)
        after = model.predict(given | {"observation": observation[None]})
        assert after["action"].tolist() == [expected]
        given |= {"carry.h": after["next_carry.h"], "reset": np.zeros(1, bool)}
        observation, reward, terminated, truncated, _ = env.step(expected)
        ended = terminated or truncated
    assert given["carry.h"].any()


def test_an_agent_is_loaded_by_what_mlflow_calls_it(uri: str, stored: Any, chosen: None) -> None:
    client = client_of(uri)
    client.set_registered_model_alias("cue", "newest", 1)
    best = next(model for model in models(uri, stored) if model.name == "best")
    loaded = [
        mneme.load(name)
        for name in (
            "models:/cue/1", "models:/cue@newest", f"models:/{best.model_id}", f"runs:/{stored.info.run_id}/best",
            f"runs:/{stored.info.run_id}/checkpoints/step-{int(best.params['step']):012d}",
        )
    ]  # fmt: skip
    for agent in loaded:
        for one, other in zip(agent.policy.parameters(), loaded[0].policy.parameters(), strict=True):
            assert one.equal(other)
    assert mneme.evaluate("models:/cue/1", episodes=8).episodes == mneme.evaluate(loaded[0], episodes=8).episodes == 8


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("models:/cue/7", "version=7"),
        ("models:/m-0", "not found"),
        ("runs:/0/best", "Run with id=0 not found"),
        ("runs:/RUN/config.yaml", "is no agent of Mneme; give a model that a run has logged"),
    ],
)
def test_what_mlflow_does_not_have_is_one_sentence(stored: Any, chosen: None, name: str, sentence: str) -> None:
    with pytest.raises(mneme.CheckpointError, match=sentence) as raised:
        mneme.load(name.replace("RUN", stored.info.run_id))
    assert "\n" not in str(raised.value)


def test_without_a_store_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(mneme.CheckpointError, match="there is no MLflow store at"):
        mneme.load("models:/cue/1")
    assert list(tmp_path.iterdir()) == []


def test_mlflow_is_told_to_send_nothing_before_it_is_imported(tmp_path: Path) -> None:
    """It reads its environment when it is imported."""
    code = (
        "import builtins, os, sys\n"
        "real = builtins.__import__\n"
        "def watched(name, *rest, **more):\n"
        "    if name.partition('.')[0] == 'mlflow':\n"
        "        assert os.environ.get('MLFLOW_DISABLE_TELEMETRY') == 'true', name\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = watched\n"
        "from pathlib import Path\n"
        "import mneme\n"
        "from mneme.reporting.tracking.client import client_of\n"
        "try:\n"
        "    mneme.load('models:/cue/1')\n"
        "except mneme.CheckpointError:\n"
        "    pass\n"
        "client_of('sqlite:///mlflow.db')\n"
        "assert 'mlflow' in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DO_NOT"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_run_cannot_go_on_from_a_model() -> None:
    with pytest.raises(mneme.CheckpointError, match="holds nothing to learn on with; go on with its run"):
        mneme.resume("models:/cue/1", local=True)


def test_the_best_of_a_run_that_has_ended_is_registered_once(uri: str, stored: Any) -> None:
    (version,) = client_of(uri).search_model_versions("name = 'cue'")
    newest = [model for model in models(uri, stored) if model.name == "best"][-1]
    assert (version.run_id, version.source) == (stored.info.run_id, newest.artifact_location)


class Noted:
    """In the place of a tracker: the models that it is given."""

    def __init__(self) -> None:
        self.models: list[tuple[str, str]] = []
        self.stories: list[Story] = []

    def model(self, name: str, checkpoint: Path, form: ModelForm) -> None:
        self.models.append((name, checkpoint.name))

    def tell(self, story: Story) -> None:
        self.stories.append(story)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def evaluation(success: float) -> mneme.Evaluation:
    successes = np.arange(4) < 4 * success
    return mneme.Evaluation(successes.astype(float), np.full(4, 9), successes, np.arange(4, dtype=np.uint64))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (["saved 1", "seen 1 0.5"], ["best 1"]),
        (["seen 1 0.5", "saved 1"], ["best 1"]),
        (["saved 1", "seen 1 0.5", "saved 2", "seen 2 0.5", "end"], ["best 1", "last 2"]),
        (["saved 1", "seen 1 0.5", "seen 2 0.75", "saved 2", "end"], ["best 1", "best 2"]),
        (["saved 1", "seen 1 1.0", "end"], ["best 1"]),
        (["saved 1", "stop"], []),
        (["saved 3", "result 3 0.25", "end"], ["best 3"]),
        (["saved 1", "seen 1 0.5", "saved 3", "result 3 0.25", "end"], ["best 1", "last 3"]),
    ],
)
def test_models_are_those_of_the_best_evaluations_and_of_the_end(
    events: list[str], expected: list[str], tmp_path: Path
) -> None:
    tracking, noted = callback.Tracking(), Noted()
    tracking._tracker, tracking._form = noted, ModelForm((), (), {}, (), {})  # type: ignore[assignment]
    tracking._folder = callback.RunFolder(tmp_path)
    for event in events:
        what, *words = event.split()
        progress = Progress(0, int(words[0]) if words else 0, 9)
        if what == "saved":
            tracking.on_checkpoint(progress, Path(f"step-{words[0]}"))
        elif what in ("seen", "result"):
            look = mneme.Look.RESULT if what == "result" else mneme.Look.EVALUATION
            tracking.on_evaluation(progress, evaluation(float(words[1])), look)
        else:
            tracking.on_end(progress, "complete" if what == "end" else "stopped")
    assert [f"{name} {path.removeprefix('step-')}" for name, path in noted.models] == expected


def test_a_resumed_run_knows_its_best() -> None:
    rows = [
        {"step": 1, "return": 9.0},
        {"step": 1, "evaluation/return": 0.5, "evaluation/success": 0.5},
        {"step": 2, "evaluation/return": 0.75, "evaluation/success": 0.75},
        {"step": 3, "evaluation/return": 0.75, "evaluation/success": 0.75},
    ]
    assert Best.among(rows) == Best(2, [0.75, 0.75])
    assert Best.among(rows[:1]) is None


def test_a_run_that_goes_on_does_not_say_that_nothing_was_evaluated(tmp_path: Path) -> None:
    tracking, noted = callback.Tracking(), Noted()
    tracking._tracker, tracking._story = noted, Story("what", "name")  # type: ignore[assignment]
    tracking._folder, tracking._resumed = callback.RunFolder(tmp_path), True
    tracking._folder.append(3, {"evaluation/return": 0.5})
    tracking.on_begin(Progress(1, 4, 9))
    (story,) = noted.stories
    assert story.how_far == "Gone on with at step 4; the best evaluation so far was at step 3."


def test_a_checkpoint_that_has_gone_is_passed_over_and_a_damaged_one_is_not(uri: str, tmp_path: Path) -> None:
    settings = TrackingSettings(uri=uri, experiment="other", system_metrics=False)
    record = StoreRun(settings, Identity("key", tmp_path, resumed=False))
    form = ModelForm((), (), {}, (), {})
    assert log_model(record._client, record._run, "best", tmp_path / "step-000000000001", form) is None
    (tmp_path / "step-000000000002").mkdir()
    with pytest.raises(mneme.CheckpointError):
        log_model(record._client, record._run, "best", tmp_path / "step-000000000002", form)
    assert client_of(uri).search_logged_models([record._experiment_id]) == []
    record.close("FAILED")


def test_an_environment_that_only_this_process_has_makes_no_model(tmp_path: Path, undrawn: None) -> None:
    given = [word for word in SMALL if not word.startswith("env.")]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mneme.train(
        None, *given, "rollout.unroll_length=9", f"tracking.uri={uri}", f"checkpoint.root={tmp_path}/runs",
        env=lambda: gym.make("mneme/Counting-v0"), local=True, progress=False,
    )  # fmt: skip
    assert client_of(uri).search_logged_models(["1"]) == []


def test_the_loop_of_the_page_plays_an_episode(stored: Any, chosen: None) -> None:
    page = (Path(__file__).parents[4] / "docs" / "mlflow.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    played: dict[str, Any] = {}
    exec(code, played)
    assert played["ended"]
    assert played["given"]["carry.h"].any()


@pytest.mark.slow
def test_the_server_of_mlflow_answers(uri: str, stored: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/cue/1", "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True) as server:
        try:
            for _ in range(1200):
                try:
                    urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None
                    time.sleep(0.1)
            given = {"observation": [[1, 0, 0, 0, 1]], "reset": [True], "carry.h": [[0] * 8]}
            answers = []
            for _ in range(2):
                body = json.dumps({"inputs": given}).encode()
                request = Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
                with urlopen(request, timeout=60) as reply:
                    answers.append(json.load(reply)["predictions"])
                given |= {"carry.h": answers[-1]["next_carry.h"], "reset": [False]}
        finally:
            os.killpg(server.pid, 15)
    assert len(answers[0]["action"]) == 1
    assert answers[0]["next_carry.h"] != answers[1]["next_carry.h"]
