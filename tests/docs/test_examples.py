"""The examples of the front door and of the parts behind it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mneme

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loop_over_the_parts_learns() -> None:
    assert example("train_loop").train(20_000, horizon=2) > 0.9


def test_a_trained_agent_plays_here_and_in_onnxruntime(tmp_path: Path) -> None:
    run = mneme.train(
        "delayed_cue", f"checkpoint.root={tmp_path}", "tracking.enabled=false", "train.total_timesteps=1",
        "train.evaluation_episodes=1", local=True, progress=False,
    )  # fmt: skip
    mean_return = example("act").play(str(run.folder), episodes=8)
    assert 0 <= mean_return <= 1
    mneme.export(run, tmp_path / "agent.onnx")
    assert example("act_onnx").play(str(tmp_path / "agent.onnx"), episodes=8) == mean_return


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(
    ("page", "name"), [("python", "train_loop"), ("deployment", "act_onnx"), ("deployment", "rllib_ppo")]
)
def test_the_pages_show_the_examples_as_they_are(page: str, name: str) -> None:
    assert (EXAMPLES / f"{name}.py").read_text() in blocks(f"docs/{page}.md")


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_what_the_pages_show_of_the_front_door_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps, and without Ray."""
    train, resume = mneme.train, mneme.resume
    small = [f"checkpoint.root={tmp_path}", "tracking.enabled=false", "train.total_timesteps=1"]

    def briefly(*given: Any, **options: Any) -> mneme.Run:
        return train(*given, *small, **options | {"local": True, "progress": False})

    def resumed(run: mneme.Run, *changes: str, total_timesteps: int, local: bool) -> mneme.Run:
        return resume(run, *changes, total_timesteps=run.steps + 1, local=local, progress=False)

    monkeypatch.setattr(mneme, "train", briefly)
    monkeypatch.setattr(mneme, "resume", resumed)
    shown = [block for block in blocks(page) if "mneme.train(" in block]
    assert shown
    for block in shown:
        exec(block, {"mneme": mneme})
