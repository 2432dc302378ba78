"""Action distributions: pure functions of a head's output, with the noise given from outside."""

from controllers.actions.bernoulli import Bernoulli
from controllers.actions.categorical import Categorical
from controllers.actions.gaussian import Gaussian
from controllers.actions.head import ActionHead
from controllers.actions.joint import Joint

__all__ = ["ActionHead", "Bernoulli", "Categorical", "Gaussian", "Joint"]
