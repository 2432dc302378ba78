"""PPO's loss from the controller's outputs on."""

from mneme.learner.objective.choice import MOST_ACTIONS, compiles, objective
from mneme.learner.objective.plain import OBJECTIVE_SUMS, RATIO, RATIO_SQUARED, Objective, Steps, plain_objective

__all__ = [
    "MOST_ACTIONS",
    "OBJECTIVE_SUMS",
    "RATIO",
    "RATIO_SQUARED",
    "Objective",
    "Steps",
    "compiles",
    "objective",
    "plain_objective",
]
