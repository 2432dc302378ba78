"""Learning from fragments: returns, windows, losses and the learner. Knows nothing of Ray."""

from mneme.learner.diagnosis import FailedUpdate, NonfiniteGradient
from mneme.learner.learner import Learner, UpdateReport, resolve_device, weights_in
from mneme.learner.optimizer import default_num_threads
from mneme.learner.settings import LearnerSettings

__all__ = [
    "FailedUpdate",
    "Learner",
    "LearnerSettings",
    "NonfiniteGradient",
    "UpdateReport",
    "default_num_threads",
    "resolve_device",
    "weights_in",
]
