"""A password in tracking.uri is used, and kept nowhere."""

import base64
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import mneme
from mneme.configuration.config import Config, load_config
from mneme.configuration.passwords import passwordless
from mneme.distributed.blueprint import make_blueprint
from mneme.experiments.sweep.plan import Plan, make_plan
from mneme.experiments.sweep.results import SweepResults
from mneme.reporting.tracking.callback import _parameters
from mneme.reporting.tracking.client import client_of
from mneme.storage.checkpoint import find_checkpoint
from mneme.training import train

pytestmark = pytest.mark.usefixtures("undrawn")

STORE = "tracking.uri=http://me:secret@127.0.0.1:9"  # where nothing answers


def config(root: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [f"checkpoint.root={root}", "name=run", "rollout.num_envs=8", "learner.num_threads=1",
         "env.kwargs={horizon: 6}", "policy.controller.hidden_size=8", "policy.controller.backend=torch",
         "train.total_timesteps=56", "train.evaluation_episodes=8", *overrides],
    )  # fmt: skip


@pytest.mark.parametrize("store", [STORE, "tracking.uri=http://me@127.0.0.1:9?api_key=secret"])
def test_what_a_run_leaves_holds_no_password_and_the_same_command_goes_on(
    store: str, tmp_path: Path, notes: list[str]
) -> None:
    asked = config(tmp_path, store)
    run = train(asked, local=True, progress=False)
    assert asked.tracking.uri in store
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in files)
    assert [path for path in files if b"secret" in path.read_bytes()] == []
    assert "http://me@127.0.0.1:9" in (run.folder / "config.yaml").read_text()
    assert sum("the password in tracking.uri is kept in no file" in note for note in notes) == 1
    assert not any("secret" in note for note in notes)
    longer = asked.changed("train", total_timesteps=112)
    assert train(longer, local=True, go_on=True, progress=False).steps == 112
    saved = find_checkpoint(run.folder)[1].run["config"]["tracking"]["uri"]
    assert saved == "http://me@127.0.0.1:9"
    assert mneme.resume(run, total_timesteps=168, local=True, trust=True, progress=False).steps == 168


def test_neither_do_the_parameters_in_mlflow(tmp_path: Path) -> None:
    assert _parameters(make_blueprint(config(tmp_path, STORE)))["tracking"]["uri"] == "http://me@127.0.0.1:9"


def test_nor_does_a_sweep_which_its_trials_record_with_it(tmp_path: Path) -> None:
    def plan(*overrides: str) -> Plan:
        return make_plan(None, [STORE, *overrides], {"space": {"learner.gamma": [0.9, 0.99]}}, tmp_path)

    results = SweepResults(tmp_path)
    results.declare(plan(), {})
    results.document["begun"].append({"number": 0, "seed": 0, "point": {"learner.gamma": 0.9}})
    results.save()
    assert "secret" not in results.path.read_text()
    assert plan().store == "http://me:secret@127.0.0.1:9"
    SweepResults(tmp_path).declare(plan(), {})  # and goes on
    with pytest.raises(mneme.ConfigError, match="is of another sweep, with other tracking"):
        SweepResults(tmp_path).declare(plan("tracking.experiment=other"), {})


class Server(BaseHTTPRequestHandler):
    """A tracking server that has no experiments, and notes who asks."""

    asked: list[str | None]

    def do_POST(self) -> None:
        given = self.headers.get("Authorization")
        self.asked.append(None if given is None else base64.b64decode(given.split()[1]).decode())
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_run_that_goes_on_takes_it_from_the_environment(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(client_of(f"http://me:secret@{host}").search_experiments()) == []
    kept = passwordless(f"http://me:secret@{host}")
    client_of(kept).search_experiments()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    client_of(kept).search_experiments()
    assert Server.asked == ["me:secret", None, "me:secret"]
