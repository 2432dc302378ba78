"""The functions that `import mneme` offers: train, resume, sweep, evaluate, load and export, each in one call."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mneme import training
from mneme.agent import Agent, load_agent, load_policy
from mneme.callbacks import Callback
from mneme.configuration.config import Config, load_config, override
from mneme.configuration.presets import find_preset
from mneme.controllers import Controller
from mneme.controllers.given import importable, kind_of
from mneme.controllers.torch_globals import threads_kept
from mneme.distributed.config import ConfigError
from mneme.envs import HERE, id_of
from mneme.evaluation import evaluate_checkpoint
from mneme.experiments.sweep.running import Sweep, run_sweep
from mneme.exporting import export_policy
from mneme.rollout_workers import Evaluation
from mneme.training import Run

_log = logging.getLogger(__name__)


def train(
    preset: str | Path | Config | None = None,
    *overrides: str,
    env: str | Callable[..., Any] | None = None,
    controller: str | type[Controller] | None = None,
    seed: int | None = None,
    name: str | None = None,
    local: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> Run:
    """Train an agent, and evaluate it in the end.

    `mneme.train("delayed_cue", controller="gru", seed=3, local=True)`

    Args:
        preset: a preset's name, a YAML file or a `Config`; none, or a setting in its place, for the defaults.
        overrides: settings as `key=value`, which count most.
        env: a registered Gymnasium id in place of the preset's, or a callable that makes a Gymnasium `Env`, or, if it
            takes `num_envs`, a `VectorEnv`; the preset's settings of its own task are then left out.
        controller: a kind, `module:Class`, or a subclass of `Controller`.
        seed, name: of the run.
        local: run everything in this process, without Ray.
        callbacks: told what happens; see `Callback`.
        progress: show the run on standard output.

    Returns:
        The run. An environment or a controller that only this process has cannot be found again by another one, which
        is said: such a run is evaluated and resumed in this process alone.

    Raises:
        ConfigError: a setting, the environment or the controller cannot be used; one sentence.
        ServiceError, EnvironmentFailure, FloatingPointError, OSError: the run failed; its last checkpoint is whole.
        Exception: what a callback raised, once the run has ended.
    """
    if isinstance(preset, str) and "=" in preset and not Path(preset).exists():
        overrides = (preset, *overrides)
        preset = None
    if not isinstance(preset, (str, Path, Config, type(None))):
        raise ConfigError(f"{preset!r} is no preset; give a preset's name, a YAML file, a Config, or settings as text")
    for setting in overrides:
        if not isinstance(setting, str):
            raise ConfigError(f'a setting is given as {setting!r}; write it as text: "seed=1"')
    _check_name(name)
    given = _given(env, controller, seed, name)
    if isinstance(preset, Config):
        file, config = None, preset
        if env is not None:  # what the settings say of another task does not fit it
            config = config.model_copy(update={"env": type(config.env)()})
        config = override(config, [*given, *overrides])
    else:
        file = None if preset is None else find_preset(str(preset))
        config = load_config(file, [*given, *overrides])
    only_here = []
    if config.env.id.startswith(HERE) or config.env.id.startswith("__main__:"):
        only_here.append("the environment")
    kind = config.policy.controller.kind
    if (kind.startswith("__main__:") or isinstance(controller, type)) and not importable(kind):
        only_here.append("the controller")
    if only_here:
        _log.warning(
            f"{' and '.join(only_here)} cannot be imported by another process, so this run can be resumed and "
            f"evaluated in the present one alone; put the code into a module of its own to lift that"
        )
    with threads_kept():  # workers in this process set one
        return training.train(config, preset=file, local=local, callbacks=callbacks, progress=progress)


def resume(
    run: Run | Path | str,
    *changes: str,
    total_timesteps: int | None = None,
    replicas: int | None = None,
    local: bool = False,
    trust: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> Run:
    """Go on with a run under its own settings.

    `mneme.resume(run, "train.stop_success=null", total_timesteps=run.steps + 10_000)`

    Args:
        run: a run, its folder, or one of its checkpoints, which may lie in a mirror.
        changes: settings as `key=value` that replace the run's own: `train.total_timesteps`, `train.stop_success` or
            `learner.replicas`.
        total_timesteps, replicas: the first and the last of these.
        trust: import what the run names, whoever wrote it, and join the cluster and open the store that it names.
        local, callbacks, progress: as for `train`.

    Raises:
        ConfigError: the run has solved its task or trained for its steps already; the sentence says what to change.
        CheckpointError: there is no usable checkpoint. Else as `train`.
    """
    given = {"train.total_timesteps": total_timesteps, "learner.replicas": replicas}
    changes += tuple(f"{key}={value}" for key, value in given.items() if value is not None)
    with threads_kept():  # workers in this process set one
        return training.resume(
            _path(run), *changes, local=local, trust=trust, callbacks=callbacks, progress=progress
        )  # fmt: skip


def sweep(
    file: str | Path | None = None,
    *overrides: str,
    space: Mapping[str, Any] | None = None,
    name: str | None = None,
    progress: bool = True,
    **search: Any,
) -> Sweep:
    """Search settings by Ray Tune; docs/sweeps.md has what can be searched, and how.

    `mneme.sweep("delayed_cue", space={"learner.learning_rate": [1e-3, 3e-3]}, seeds=2, name="rates")`

    Args:
        file: a sweep's file, the name of one that comes with Mneme, or a preset's; none, or a setting in its place, for
            the defaults.
        overrides: settings as `key=value`.
        space: what each setting may be, in place of the file's space.
        name: folder under runs/sweeps; unset: the file's name. A sweep of that name goes on.
        progress: show the sweep on standard output.
        search: other settings of the sweep by name, such as `search="optuna"`, `trials=32` or `metric=...`.

    Raises:
        ConfigError, EnvironmentFailure, ServiceError: the space, a setting or Ray is at fault; nothing has started.
    """
    if isinstance(file, str) and "=" in file and not Path(file).exists():
        overrides = (file, *overrides)
        file = None
    _check_name(name)
    given = search if space is None else {"space": dict(space), **search}
    return run_sweep(file, overrides, search=given, name=name, console=None if progress else Console(quiet=True))


def evaluate(
    agent: Agent | Run | Path | str,
    *changes: str,
    episodes: int = 512,
    seed: int = 0,
    num_envs: int | None = None,
    greedy: bool = True,
    reset_carry_at: int | None = None,
    record: Path | str | None = None,
    video: Path | str | None = None,
    trust: bool = False,
) -> Evaluation:
    """Run complete episodes of the task that an agent was trained on, through the training collector.

    Args:
        agent: an agent that was loaded, a run, or the path of a run or a checkpoint.
        changes: settings of the task, `env.key=value`, that replace the run's.
        episodes: how many at least.
        seed: of the episodes.
        num_envs: in parallel; unset: as many as the run had.
        greedy: take the most probable action instead of sampling.
        reset_carry_at: forget everything at this step of every episode.
        record, video: a new Parquet file for the episodes, a folder for films of the first of them.
        trust: import what the run names, whoever wrote it.

    Raises:
        ConfigError, CheckpointError, ValueError, OSError: one sentence each.
    """
    with threads_kept():  # workers in this process set one
        return evaluate_checkpoint(
            _path(agent), episodes=episodes, seed=seed, num_envs=num_envs, changes=changes, greedy=greedy,
            reset_carry_at=reset_carry_at, record=None if record is None else _written("record", record),
            video=None if video is None else _written("video", video), trust=trust,
        )  # fmt: skip


def load(run: Run | Path | str, *, trust: bool = False) -> Agent:
    """The agent of a run, as its newest checkpoint has it, or the very one that a path or a model of MLflow names.

    Args:
        run: a run, its folder, or one of its checkpoints; or a model, `models:/NAME/VERSION` or `runs:/RUN/best`.
        trust: import what the run names, whoever wrote it.

    Raises:
        CheckpointError, ConfigError: there is no usable one; the message says why.
    """
    return load_agent(_path(run), trust)


def export(agent: Agent | Run | Path | str, file: Path | str, *, trust: bool = False) -> None:
    """Write one step of an agent as ONNX, or as a program of torch.export, as the file's ending says: .onnx or .pt2.

    Args:
        agent: an agent, a run, or the path of a run or a checkpoint.
        file: to be written.
        trust: import what the run names, whoever wrote it.

    Raises:
        CheckpointError, ConfigError, ValueError, OSError: one sentence each.
    """
    path = _written("file", file)
    policy = agent.policy if isinstance(agent, Agent) else load_policy(_path(agent), trust).policy
    export_policy(policy, path)


def _given(env: Any, controller: Any, seed: int | None, name: str | None) -> Sequence[str]:
    """The arguments as overrides."""
    try:
        id = env if isinstance(env, str) or env is None else id_of(env)
        kind = controller if isinstance(controller, str) or controller is None else kind_of(controller)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    settings = {"policy.controller.kind": kind, "seed": seed, "name": None if name is None else json.dumps(name)}
    task = [] if id is None else [f"env={{id: {id!r}}}"]
    return task + [f"{key}={value}" for key, value in settings.items() if value is not None]


def _check_name(name: str | None) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name is {name!r}; give a folder's name as text, or None for one that is made for you")


def _written(what: str, path: Path | str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"{what} is {path!r}; give the path of what is to be written, as text or a Path")
    return Path(path)


def _path(run: Agent | Run | Path | str) -> Path:
    if isinstance(run, Run):
        return run.folder
    if isinstance(run, Agent):
        if run.path is None:
            raise ConfigError("this agent is from no run, so nothing says what to evaluate it on; load one from a run")
        return run.path
    if not isinstance(run, (str, Path)):
        raise ConfigError(f"{run!r} is no run; give a run, an agent, or the path of a run or of a checkpoint")
    return Path(run)
