"""Mneme where users have it: as a wheel among other people's packages, and as a plain clone that nothing installed."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from sysconfig import get_path

import pytest

ROOT = Path(__file__).parents[1]
TRAIN = [
    "-m", "mneme", "train", "--local", "name=run", "tracking.enabled=false", "rollout.num_envs=4",
    "rollout.num_workers=1",
    "rollout.unroll_length=8", "train.total_timesteps=32", "train.evaluation_episodes=4", "learner.num_minibatches=1",
    "policy.controller.hidden_size=8",
]  # fmt: skip
OF_A_USER = """
import gymnasium

from mneme.envs.counting import CountingEnv

gymnasium.register("Own-v0", CountingEnv)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's interpreter: it has what Mneme needs, and not Mneme."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(get_path("purelib"))  # whose own .pth files, ours among them, are not read
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, without what is built or downloaded."""
    folder = tmp_path_factory.mktemp("clone") / "mneme"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=left_out)


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_trains_on_a_users_own_envs_beside_dasks_distributed(python: Path, clone: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, clone],
        check=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        archive.extractall(tmp_path / "installed")
    assert {name for name in tops if not name.endswith(".dist-info")} == {"mneme"}
    shutil.copytree(tmp_path / "installed", site, dirs_exist_ok=True)
    for name in ("distributed", "controllers", "learner"):  # as Dask's does, they stand at the top
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise AssertionError('this is somebody else')")
    project = tmp_path / "project"
    (project / "envs").mkdir(parents=True)
    (project / "envs" / "__init__.py").write_text(OF_A_USER)
    try:
        assert "done at step 32" in run(python, *TRAIN, "env.id=envs:Own-v0", cwd=project)
        run(python, "-c", "import mneme; assert 'site-packages' in mneme.__file__", cwd=project)
    finally:
        shutil.rmtree(site / "mneme")


def test_a_plain_clone_trains(python: Path, clone: Path) -> None:
    assert "done at step 32" in run(python, *TRAIN, "env.id=mneme/Counting-v0", cwd=clone)
    where = run(python, "-c", "import mneme.envs as envs; print(envs.__file__)", cwd=clone)
    assert Path(where.strip()).is_relative_to(clone)
