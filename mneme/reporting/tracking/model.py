"""An agent as a model in MLflow: a pyfunc whose code is a file of ours and whose weights are arrays, without pickle."""

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mneme.agent import Agent
from mneme.configuration.config import Config
from mneme.controllers.given import importable
from mneme.distributed.blueprint import Blueprint
from mneme.envs import HERE
from mneme.named_step import NamedStep, Port
from mneme.reporting.tracking.database import database_of
from mneme.storage.checkpoint import load_checkpoint, save_checkpoint, step_of
from mneme.storage.trust import named_code

CODE = Path(__file__).with_name("model_code.py")
CHECKPOINT = "checkpoint"
"""Name of the model's one artifact, a checkpoint with what acting needs."""

_TYPE = "policy"  # of MLflow's models; its "agent" is a language model's
_OF_HOME = ("name", "checkpoint", "tracking")  # sections of the configuration that say where a run was at home
_NOT_FOR_ACTING = "adam."  # before the names of the optimiser's moments
_PACKAGES = ("mneme-rl", "torch", "numpy", "gymnasium", "safetensors")


class ModelForm(NamedTuple):
    """All that the models of one run have in common."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]
    example: Mapping[str, np.ndarray]  # of the inputs, of one environment
    code: Sequence[str]  # modules besides Mneme's that acting imports
    params: Mapping[str, str]  # by which models are told apart


def form_of(blueprint: Blueprint[Config]) -> ModelForm | None:
    """The form of the models of a run; None of one whose environment or controller only this process has.

    Raises:
        ValueError: a part of the observation has the name of another input.
    """
    config, kind = blueprint.config, blueprint.config.policy.controller.kind
    if config.env.id.startswith((HERE, "__main__:")) or (":" in kind and not importable(kind)):
        return None
    step = NamedStep(Agent.of(blueprint, blueprint.policy()))
    code = [module for _, _, module in named_code(config)]
    params = {"task": config.env.id, "controller": kind, "mode": config.learner.mode}
    return ModelForm(step.inputs, step.outputs, step.example(), code, params)


def log_model(
    client: Any, run: Any, name: str, checkpoint: Path, form: ModelForm, metrics: Sequence[Any] = ()
) -> str | None:
    """Add a model to a run of a store; None if the checkpoint has gone, as a better one or a newer one has come.

    Called in the tracking thread, as MLflow is imported.

    Args:
        client: of the store.
        run: the store's.
        name: of the model in the run.
        checkpoint: of the agent.
        form: of the run's models.
        metrics: of the run that are the model's.

    Returns:
        The model's identifier.
    """
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    step = step_of(checkpoint)
    with tempfile.TemporaryDirectory(prefix="mneme-") as folder:
        try:
            slim = _for_acting(checkpoint, Path(folder))
        except Exception:
            if checkpoint.exists():
                raise
            return None
        logged = client.create_logged_model(
            run.info.experiment_id, name, run.info.run_id, params={**form.params, "step": str(step)}, model_type=_TYPE
        )
        try:
            model = Model(
                artifact_path=logged.artifact_location,
                run_id=run.info.run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            )
            _save(model, Path(folder) / "model", slim, form)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step)])
    own = [
        Metric(point.key, point.value, point.time_ms, point.step, logged.model_id, run_id=run.info.run_id)
        for point in metrics
    ]
    client.log_batch(run.info.run_id, metrics=own)
    return str(logged.model_id)


def register(client: Any, name: str, model: Any) -> None:
    """Make a model of a store the newest version of a registered one, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A database would look the model's identifier up in whatever store this process uses otherwise.
    source = f"models:/{model.model_id}" if database_of(client) is None else model.artifact_location
    client.create_model_version(name, source, model.source_run_id, model_id=model.model_id)


def _for_acting(checkpoint: Path, folder: Path) -> Path:
    """Write what acting needs of a checkpoint, and nothing of where it was made, as one below `folder`."""
    saved = load_checkpoint(checkpoint, part="learner")
    config = {key: value for key, value in saved.run["config"].items() if key not in _OF_HOME}
    config["service"] = {**config["service"], "address": None}
    config["train"] = {**config["train"], "start_from": None, "start_part": "all"}
    run = {**saved.run, "config": config, "tracking_run": None, "waiting_episodes": [], "resumes_exactly": False}
    arrays = {key: array for key, array in saved.arrays["learner"].items() if not key.startswith(_NOT_FOR_ACTING)}
    return save_checkpoint(folder, step_of(checkpoint), run, {"learner": arrays}, keep=1)


def _save(model: Any, folder: Path, checkpoint: Path, form: ModelForm) -> None:
    """Write a model's folder in MLflow's form."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    inputs, outputs = (
        Schema([TensorSpec(port.dtype, (-1, *port.shape), port.name) for port in ports])
        for ports in (form.inputs, form.outputs)
    )
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=model,
        python_model=CODE,
        artifacts={CHECKPOINT: str(checkpoint)},
        signature=ModelSignature(inputs, outputs, ParamSchema([ParamSpec("greedy", DataType.boolean, True)])),
        input_example=dict(form.example),
        pip_requirements=_requirements(form.code),
        model_config={"trust": False},
    )


def _requirements(modules: Sequence[str]) -> list[str]:
    """The packages that acting needs, in the versions that are here."""
    names = list(_PACKAGES)
    if modules:
        installed = packages_distributions()
        names += [name for module in modules for name in installed.get(module.partition(".")[0], ())]
    return [_pinned(name) for name in dict.fromkeys(names)]


def _pinned(name: str) -> str:
    try:
        return f"{name}=={version(name).partition('+')[0]}"  # what follows a + is no version of an index
    except PackageNotFoundError:  # a clone that nothing installed
        return name
