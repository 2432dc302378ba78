"""PPO's loss from the controller's outputs on."""

from mneme.learner.objective.objective import (
    OBJECTIVE_SUMS,
    RATIO,
    RATIO_SQUARED,
    Objective,
    Steps,
    objective,
    plain_objective,
)

__all__ = ["OBJECTIVE_SUMS", "RATIO", "RATIO_SQUARED", "Objective", "Steps", "objective", "plain_objective"]
