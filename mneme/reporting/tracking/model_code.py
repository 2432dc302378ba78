"""The code of an agent that is an MLflow model: MLflow keeps a copy of this file in it, and runs that to load it.

It needs Mneme, and takes nothing from the model but arrays and plain data.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mneme.agent import load_agent
from mneme.named_step import NamedStep


class AgentModel(PythonModel):
    """One step of an agent, memory in and memory out; see `NamedStep`."""

    _skip_type_hint_validation = True  # no warning that hints are missing

    def load_context(self, context: PythonModelContext) -> None:
        """Load the agent."""
        agent = load_agent(Path(context.artifacts["checkpoint"]), trust=context.model_config["trust"])
        self._step = NamedStep(agent)

    # MLflow has no type hint for arrays by name, and warns of what it does not know; the signature says it all.
    def predict(  # type: ignore[no-untyped-def]
        self, context: PythonModelContext, model_input, params: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """The actions and the memory for the next step, of arrays by name; `params` may say `greedy`."""
        return self._step(model_input, **(params or {}))


set_model(AgentModel())
