"""Which form of the objective is computed.

Legend: K steps, W windows, H features.
"""

from torch import Tensor

from mneme.controllers import Policy
from mneme.controllers.acting import heads_compile
from mneme.learner.objective.plain import Objective, Steps, plain_objective
from mneme.learner.settings import LearnerSettings


def objective(policy: Policy, s: LearnerSettings, steps: Steps, y_KWH: Tensor, weight: float = 1.0) -> Objective:
    """`plain_objective`, compiled where it can be."""
    if not heads_compile(policy, y_KWH):
        return plain_objective(policy, s, steps, y_KWH, weight)
    from mneme.learner.objective.numba import compiled_objective  # here, as numba may be missing

    return compiled_objective(policy, s, steps, y_KWH, weight)
