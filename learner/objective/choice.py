"""Which form of the objective is computed.

Legend: K steps, W windows, H features.
"""

from torch import Tensor

from mneme.controllers import Categorical, Policy
from mneme.controllers.scans.backends import obstacle
from mneme.learner.objective.plain import Objective, Steps, plain_objective
from mneme.learner.settings import LearnerSettings

MOST_ACTIONS = 64
"""That the compiled objective takes: with more, torch's matrix products make heads faster than a loop over actions."""


def objective(policy: Policy, s: LearnerSettings, steps: Steps, y_KWH: Tensor) -> Objective:
    """`plain_objective`, compiled where it can be."""
    if not compiles(policy, s, y_KWH):
        return plain_objective(policy, s, steps, y_KWH)
    from mneme.learner.objective.numba import compiled_objective  # here, as numba may be missing

    return compiled_objective(policy, s, steps, y_KWH)


def compiles(policy: Policy, s: LearnerSettings, like: Tensor) -> bool:
    """Whether the objective of outputs like this tensor is compiled: on a CPU, of one choice of a few without masks."""
    distribution = policy.action_distribution
    return (
        obstacle("numba", like.device, like.dtype, forced=False) is None
        and isinstance(distribution, Categorical)
        and distribution.actions <= MOST_ACTIONS
        and not policy.spec.masked
        and s.value_loss != "two_hot"
        and like.dtype == policy.value_head.weight.dtype
    )
