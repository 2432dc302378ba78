"""PPO's loss from the controller's outputs on."""

from mneme.learner.objective.choice import objective
from mneme.learner.objective.plain import (
    OBJECTIVE_SUMS,
    RATIO,
    RATIO_SQUARED,
    Number,
    Objective,
    Steps,
    plain_objective,
)

__all__ = [
    "OBJECTIVE_SUMS",
    "RATIO",
    "RATIO_SQUARED",
    "Number",
    "Objective",
    "Steps",
    "objective",
    "plain_objective",
]
