"""Learning from fragments: returns, windows, losses and the learner. Knows nothing of Ray."""

from mneme.learner.device import remarks, resolve_device
from mneme.learner.diagnosis import FailedUpdate, NonfiniteGradient
from mneme.learner.group import Group, GroupError, GroupLost, TorchGroup, join_store, open_store
from mneme.learner.learner import Learner, UpdateReport, weights_in
from mneme.learner.optimizer import default_num_threads
from mneme.learner.settings import LearnerSettings

__all__ = [
    "FailedUpdate",
    "Group",
    "GroupError",
    "GroupLost",
    "Learner",
    "LearnerSettings",
    "NonfiniteGradient",
    "TorchGroup",
    "UpdateReport",
    "default_num_threads",
    "join_store",
    "open_store",
    "remarks",
    "resolve_device",
    "weights_in",
]
