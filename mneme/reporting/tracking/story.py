"""A run in words, for MLflow's pages: what it is in tags, how far it came in a note."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from mneme.configuration.config import Config
from mneme.configuration.passwords import without_password
from mneme.distributed.blueprint import Blueprint
from mneme.experiments.machine import cores, cpu_model
from mneme.learner.device import resolve_device

NOTE = "mlflow.note.content"
_ROOT = Path(__file__).resolve().parents[3]


class Story(NamedTuple):
    """How far a run has come."""

    what: str  # was trained on what, one sentence
    name: str
    how_far: str = "Nothing has been evaluated yet."
    curve: bool = False  # whether there is a picture
    model: bool = True  # whether its agents become models

    def note(self, run_id: str) -> str:
        """In Markdown, for the run's page; the picture is one of its artifacts."""
        again = f"mneme train config.yaml name={shlex.quote(f'{self.name}-again')}"
        best = f"mneme evaluate runs:/{run_id}/best"
        paragraphs = (
            self.what,
            self.how_far,
            f"![learning curve](get-artifact?path=curve.png&run_uuid={run_id})" if self.curve else "",
            f"Again, with `config.yaml` of the artifacts: `{again}`",
            f"The best agent, in the folder where `runs/` is: `{best}`" if self.model else "",
        )
        return "\n\n".join(filter(None, paragraphs))


def told(blueprint: Blueprint[Config], name: str) -> Story:
    """The beginning of a run's story."""
    config, facts, learner = blueprint.config, blueprint.facts, blueprint.config.learner
    kwargs = ", ".join(f"{key}={value}" for key, value in config.env.kwargs.items())
    reach = {
        "full": "the whole sequence",
        "traces": "all time, by traces",
        "cached": "one step",
        "truncated": f"{learner.bptt_length} steps",
    }
    what = (
        f"**{config.policy.controller.kind}** on **{config.env.id}**{f' ({kwargs})' if kwargs else ''}, by PPO with "
        f"gradients through {reach[learner.mode]} in {config.service.mode} service, seed {config.seed}, for at most "
        f"{config.train.total_timesteps:,} environment steps."
    )
    if facts is not None:
        what += f" Without memory the best return is {facts.memoryless_return:.3g}, of all {facts.optimal_return:.3g}."
    return Story(what, name)


def tags_of(blueprint: Blueprint[Config]) -> Mapping[str, str]:
    """What a run is found by among others."""
    config = blueprint.config
    device = config.learner.device
    if device == "auto" and config.service.cluster() is None:  # a cluster's learner is on another machine
        device = str(resolve_device(device))
    return {
        "task": config.env.id,
        "controller": config.policy.controller.kind,
        "mode": config.learner.mode,
        "service": config.service.mode,
        "seed": str(config.seed),
        "machine": f"{cpu_model()}, {cores()} cores",
        "device": device,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": _command(),
    }


def _command() -> str:
    """The command of this process; of a program of somebody else's its name alone, as its words may be secrets."""
    program = Path(sys.argv[0])
    if program.name == "mneme" or program.parts[-2:] == ("mneme", "__main__.py"):
        return shlex.join(["mneme", *map(without_password, sys.argv[1:])])
    return program.name


def code_tags() -> Mapping[str, str]:
    """The version of the code, in the form that MLflow has for it where it is a clone of a repository."""
    try:
        tags = {"version": version("mneme-rl")}
    except PackageNotFoundError:  # a clone that nothing installed
        tags = {}
    if (_ROOT / ".git").exists():
        try:
            command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
            commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return tags
        tags["mlflow.source.git.commit"] = commit
    return tags
