"""Loading a run never executes code that nobody here has chosen, wherever it lies and however it is named."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mneme.configuration.config import Config, load_config
from mneme.evaluation import evaluate_checkpoint
from mneme.storage.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from mneme.storage.trust import refuse_foreign_code, refuse_foreign_places
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[3]
CODE = "open('/dev/fd/2', 'w').write('THE CODE RAN')\nraise RuntimeError('THE CODE RAN')\n"
SMALL = [
    "rollout.num_envs=4", "rollout.num_workers=1", "env.kwargs={horizon: 6}", "policy.controller.hidden_size=8",
    "policy.controller.backend=torch", "train.total_timesteps=28", "train.evaluation_episodes=4",
    "tracking.enabled=false",
    "learner.num_threads=1", "name=run",
]  # fmt: skip


def mneme(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from mneme.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a task of Mneme's own."""
    return train(load_config(None, [*SMALL, f"checkpoint.root={tmp_path_factory.mktemp('runs')}"]), local=True).folder


@pytest.fixture
def strange(run: Path, tmp_path: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """A copy of it whose settings a test may change, and save."""
    saved = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])
    yield tmp_path / "got" / "run", saved.run
    assert not (tmp_path / "ran").exists()


def written(strange: tuple[Path, dict[str, object]], run: Path, **settings: object) -> Path:
    folder, record = strange
    config = record["config"]
    assert isinstance(config, dict)
    config["env"] |= {"id": settings.get("id", "mneme/DelayedCue-v0")}
    if "kind" in settings:
        del config["policy"]["controller"]["layer_norm"]  # which only some kinds have
        config["policy"]["controller"] |= {"kind": settings["kind"]}
    arrays = load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).arrays
    save_checkpoint(folder / "checkpoints", 28, record, arrays, keep=3)
    return folder


def naming(module: str, setting: str) -> Config:
    word = f"env.id={module}:X-v0" if setting == "env.id" else f"policy.controller.kind={module}:X"
    return load_config(None, [word])


@pytest.mark.parametrize("setting", ["env.id", "policy.controller.kind"])
@pytest.mark.parametrize(
    "place", ["run/evil.py", "evil.py", "run/checkpoints/evil.py", "evil/__init__.py", "evil/a.txt"]
)
def test_a_module_that_comes_with_the_run_is_named_and_not_imported(
    strange: tuple[Path, dict[str, object]], run: Path, place: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(strange, run, **{"id": "evil:X-v0"} if setting == "env.id" else {"kind": "evil:X"})
    file = folder.parent / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(CODE)
    start = file.parent if file.name == "evil.py" else file.parent.parent
    for path in ([], [str(start)], [os.path.relpath(start)], ["."]):
        monkeypatch.chdir(start)
        monkeypatch.setattr(sys, "path", [*path, *sys.path])
        monkeypatch.setattr(sys, "path_importer_cache", {})  # it holds relative folders as they were
        for load in (
            lambda: evaluate_checkpoint(folder, episodes=4, num_envs=4, seed=0),
            lambda: evaluate_checkpoint(folder / "checkpoints" / "step-000000000028", episodes=4, num_envs=4, seed=0),
            lambda: resume(folder, "train.total_timesteps=56", local=True),
        ):
            with pytest.raises(
                CheckpointError, match=rf"{setting}=evil:X.*the code in .*evil.*beside the run.*--trust"
            ):
                load()
    assert "evil" not in sys.modules


def test_a_module_from_elsewhere_needs_trust_and_an_installed_or_imported_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "own"
    (elsewhere / "pack").mkdir(parents=True)
    own.mkdir()
    (elsewhere / "pack" / "__init__.py").write_text(CODE)
    (elsewhere / "pack" / "inner.py").write_text(CODE)
    (elsewhere / "gymnasium").mkdir()
    (elsewhere / "popgym.py").write_text(CODE)
    (elsewhere / "loaded.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(elsewhere), *sys.path])
    monkeypatch.delitem(sys.modules, "popgym", raising=False)  # which other tests import
    step, folder = own / "run" / "checkpoints" / "step-1", own / "run"
    for setting in ("env.id", "policy.controller.kind"):
        for module, named in (
            ("pack", "pack/__init__.py"),
            ("pack.inner", "pack/__init__.py"),
            ("popgym", "popgym.py"),
        ):
            with pytest.raises(
                CheckpointError, match=f"would run the code in {elsewhere / named}, and that is neither"
            ):
                refuse_foreign_code(naming(module, setting), step, folder)
        for module in (
            "minigrid",
            "gymnasium.envs.classic_control",
            "mneme.envs.counting",
            "mneme.controllers.contract.agreement",
        ):
            refuse_foreign_code(naming(module, setting), step, folder)
        for module in ("antigravity", "this", "json.tool", "sys.x", "nowhere", ".nowhere", "../own/evil", "a:b", ""):
            with pytest.raises(CheckpointError, match="there is no module|would run the code in"):
                refuse_foreign_code(naming(module, setting), step, folder)
    assert "pack" not in sys.modules
    import loaded  # type: ignore[import-not-found]

    refuse_foreign_code(naming("loaded", "env.id"), step, folder)
    del sys.modules[loaded.__name__]


def test_what_an_editable_install_names_is_installed_unless_the_run_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mneme.storage import trust

    project, packages = tmp_path / "project", tmp_path / "site"
    (project / "mine").mkdir(parents=True)
    (project / "mine" / "__init__.py").write_text(CODE)
    packages.mkdir()
    (packages / "_mine.pth").write_text(f"# by hand\nimport os\n{project}\n")
    monkeypatch.setattr(trust, "_sites", lambda: (packages,))
    monkeypatch.setattr(trust, "_installed_folders", trust._installed_folders.__wrapped__)
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])
    refuse_foreign_code(naming("mine", "env.id"), tmp_path / "step", tmp_path / "runs" / "x")
    with pytest.raises(CheckpointError, match="beside the run"):
        refuse_foreign_code(naming("mine", "env.id"), tmp_path / "step", project / "x")
    link = tmp_path / "link"
    link.symlink_to(project / "x")
    with pytest.raises(CheckpointError, match="beside the run"):
        refuse_foreign_code(naming("mine", "env.id"), tmp_path / "step", link)


def placed(uri: str, *words: str) -> Config:
    return load_config(None, [f"tracking.uri={uri}", *words])


def test_a_run_goes_on_in_its_own_store_and_on_this_machine_and_nowhere_else_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    step, folder = tmp_path / "got" / "run" / "checkpoints" / "step-1", tmp_path / "got" / "run"
    folder.mkdir(parents=True)
    beside, elsewhere = f"sqlite:///{tmp_path}/got/mlflow.db", tmp_path / "elsewhere"
    (tmp_path / "got" / "link.db").symlink_to(elsewhere / "mlflow.db")
    for uri in (beside, f"sqlite:///{folder}/a/mlflow.db", "sqlite:///runs/mlflow.db"):
        refuse_foreign_places(placed(uri), step, folder, local=False)
    for uri in (
        "http://me:secret@evil.example:5000", "postgresql://evil/db", f"sqlite:///{elsewhere}/mlflow.db",
        f"sqlite:///{tmp_path}/got/../elsewhere/mlflow.db", f"sqlite:///{tmp_path}/got/link.db",
        f"sqlite:///{tmp_path}/got/another-run/mlflow.db", beside.replace("sqlite:", "sqlite+evil:"),
    ):  # fmt: skip
        refuse_foreign_places(placed(uri, "tracking.enabled=false"), step, folder, local=False)
        with pytest.raises(
            CheckpointError, match=r"has tracking\.uri=.*, a store that is neither .*--trust"
        ) as refused:
            refuse_foreign_places(placed(uri), step, folder, local=True)
        assert "secret" not in str(refused.value)
    for address in ("auto", "local", "''"):
        refuse_foreign_places(placed(beside, f"service.address={address}"), step, folder, local=False)
    for address in ("ray://evil:10001", "10.0.0.1:6379"):
        with pytest.raises(CheckpointError, match=rf"has service\.address={address}, a Ray cluster .*--trust"):
            refuse_foreign_places(placed(beside, f"service.address={address}"), step, folder, local=False)
        refuse_foreign_places(placed(beside, f"service.address={address}"), step, folder, local=True)


def test_a_strangers_cluster_and_store_are_reached_with_trust_alone(
    strange: tuple[Path, dict[str, object]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception): ...

    def reach(*_: object) -> None:
        raise Reached

    monkeypatch.setattr("mneme.training._execute", reach)
    for section, setting, value in (
        ("service", "address", "ray://evil:10001"),
        ("tracking", "uri", "http://evil.example"),
    ):
        config = strange[1]["config"]
        assert isinstance(config, dict)
        config["tracking"]["enabled"] = section == "tracking"
        config[section][setting] = value
        folder = written(strange, run)
        with pytest.raises(CheckpointError, match=f"{section}.{setting}={value}"):
            resume(folder, "train.total_timesteps=56", local=section == "tracking")
        with pytest.raises(Reached):
            resume(folder, "train.total_timesteps=56", trust=True)


OWN = (
    "import gymnasium\nfrom mneme.envs.counting import Counting\n"
    "gymnasium.register('Own-v0', vector_entry_point=Counting)\n"
)
HOSTILE = ("yaml.py", "mamba_ssm.py", "mlflow.py", "torch.py", "multiprocessing.py", "socket.py", "sitecustomize.py")


@pytest.mark.slow
def test_ones_own_module_trains_as_ever_and_is_loaded_with_trust_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    words = [*SMALL, "env.id=own:Own-v0", "env.kwargs={}", "rollout.unroll_length=7"]
    trained = mneme("train", "--local", *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    refused = mneme("evaluate", "runs/run", "--episodes", "4", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"env.id=own:Own-v0, which would run the code in {tmp_path / 'own.py'}" in refused.stderr
    evaluated = mneme("evaluate", "runs/run", "--episodes", "4", "--trust", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    more = ("train", "--local", "--resume", "runs/run", "train.total_timesteps=56")
    assert "own.py" in mneme(*more, cwd=tmp_path).stderr
    resumed = mneme(*more, "--trust", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


def test_a_run_that_is_loaded_from_inside_its_folder_runs_none_of_its_files(run: Path, tmp_path: Path) -> None:
    for name in HOSTILE:
        (run / name).write_text(CODE)
    (run / "matplotlibrc").write_text("backend: module://sitecustomize\n")
    try:
        for words in (
            ["evaluate", ".", "--episodes", "4"],
            ["train", "--local", "--resume", ".", "train.total_timesteps=56"],
        ):
            done = mneme(*words, cwd=run)
            assert done.returncode == 0, done.stderr
            assert "THE CODE RAN" not in done.stdout + done.stderr
    finally:
        for name in (*HOSTILE, "matplotlibrc"):
            (run / name).unlink()
