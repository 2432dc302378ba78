"""The page on controllers: its example is the file, keeps the contract, and trains."""

import dataclasses
import io
from pathlib import Path

from rich.console import Console
from torch import Generator

from mneme.configuration.config import load_config
from mneme.controllers import CONTROLLERS, KINDS, ControllerSettings, build_controller
from mneme.experiments.checking import check_controller
from mneme.training import train

ROOT = Path(__file__).parents[2]
KIND = "docs.examples.leaky_memory:LeakyMemory"


def test_the_page_shows_the_example_as_it_is() -> None:
    example = (ROOT / "docs" / "examples" / "leaky_memory.py").read_text()
    assert len(example.splitlines()) < 50
    assert f"```python\n{example}```" in (ROOT / "docs" / "controllers.md").read_text()


def test_the_page_has_every_kind_with_its_carry_and_its_settings() -> None:
    page = (ROOT / "docs" / "controllers.md").read_text()
    kinds = page.split("## The kinds\n")[1].split("\n## ")[0]
    rows = {line.split("`")[1]: line for line in kinds.splitlines() if line.startswith("| `")}
    assert rows.keys() == CONTROLLERS.keys()
    common = {setting.name for setting in dataclasses.fields(ControllerSettings)}
    for kind in CONTROLLERS:
        built = build_controller(ControllerSettings(kind=kind), 9, 64, Generator().manual_seed(0))
        carry = sum(value.numel() for value in built.initial().values())
        assert f"| {carry} |" in rows[kind]
        shown = rows[kind] + (
            rows["mamba"] if kind == "mamba_gru" else rows["mamba2"] if kind == "pseudo_mamba" else ""
        )
        for setting in dataclasses.fields(KINDS[kind]):
            if setting.name not in common:
                default = setting.default
                told = f"{default:.3g}" if isinstance(default, float) and default else default
                assert f"`{setting.name}={told}`" in shown


def test_the_example_keeps_the_contract() -> None:
    out = io.StringIO()
    settings = ["hidden_size=8", "initial_carry=learned", "kwargs.leak=3", "chrono=false"]
    assert check_controller(KIND, settings, Console(file=out)), out.getvalue()
    assert "all checks passed" in out.getvalue()


def test_the_example_trains_by_the_kind_that_the_page_gives(tmp_path: Path) -> None:
    config = load_config(
        None,
        [f"policy.controller.kind={KIND}", "env.kwargs.horizon=2", f"checkpoint.root={tmp_path}",
         "tracking.enabled=false", "rollout.num_envs=8", "policy.controller.hidden_size=8", "learner.num_minibatches=2",
         "train.total_timesteps=72", "train.evaluation_episodes=16"],
    )  # fmt: skip
    assert train(config, local=True).steps == 72
