"""docs/tutorial_cluster.md does what it says, on a host of its own."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.distributed.namespaces import RAY, hosts

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_block_of_the_cluster_tutorial_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "tutorial_cluster.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    ignored = shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__", "benchmarks", "docs", "tests")
    project = Path(shutil.copytree(ROOT, tmp_path / "project", symlinks=True, ignore=ignored))
    with hosts(tmp_path / "hosts", "laptop") as network:
        laptop = network["laptop"]
        path = {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}
        listening = "ss -Hltn | awk '{print \"LISTENS\", $4}'"
        script = "\n".join([*blocks[:-1], listening, blocks[-1]])
        said = laptop.run("bash", "-e", "-c", script, env=path, cwd=project, timeout=800).stdout
        assert re.search(r"Job 'cue' succeeded", said)
        assert "has solved its task" in said or "success 100.0%" in said
        forgetful = said[said.rindex("success ") :]
        assert float(re.findall(r"success +([\d.]+)%", forgetful)[0]) < 60
        assert re.findall(r"LISTENS (\S+):8265", said) == ["127.0.0.1"]
        assert not [line for line in laptop.processes() if "raylet" in line]
        assert (laptop.home / "runs" / "cue" / "checkpoints").is_dir()
