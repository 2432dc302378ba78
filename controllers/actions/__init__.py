"""Action distributions: pure functions of a policy head's output, with the noise given from outside."""

from mneme.controllers.actions.bernoulli import Bernoulli
from mneme.controllers.actions.categorical import Categorical
from mneme.controllers.actions.distribution import ActionDistribution
from mneme.controllers.actions.gaussian import Gaussian
from mneme.controllers.actions.joint import Joint

__all__ = ["ActionDistribution", "Bernoulli", "Categorical", "Gaussian", "Joint"]
