"""Learning from fragments: returns, windows, losses and the learner. Knows nothing of Ray."""

from learner.learner import Learner, UpdateReport
from learner.settings import LearnerSettings

__all__ = ["Learner", "LearnerSettings", "UpdateReport"]
