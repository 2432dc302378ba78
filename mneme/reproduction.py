"""The update that ended a run because its gradients were not finite, made once more."""

import logging
from pathlib import Path

from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.workers import LearnerWorker
from mneme.learner import NonfiniteGradient
from mneme.storage.failed_update import find_failed_update
from mneme.storage.restoring import checked_state, load_run
from mneme.storage.trust import refuse_foreign_code

_log = logging.getLogger(__name__)


def reproduce(path: Path, *, trust: bool = False) -> str | None:
    """Make the update again that a run has kept; returns the sentence with which it fails, None if it does not.

    Args:
        path: a run's folder, or that of the update in it.
        trust: import what the run names, whoever wrote it.

    Raises:
        CheckpointError: there is none, or it is not one that a run has written.
        FragmentError: none of its fragments can be used.
        ConfigError, EnvironmentFailure: the run's task cannot be made here.
    """
    path, batches = find_failed_update(path)
    path, saved, config = load_run(path, trust)
    if not trust:
        refuse_foreign_code(config, path, path.parent.parent)
    blueprint = make_blueprint(config)
    learner = LearnerWorker(blueprint)
    version = learner.set_state(checked_state(path, saved, blueprint).learner).version
    _log.info(f"{path}: weights version {version}, fragments: {len(batches)}")
    try:
        learner.update(*batches)
    except NonfiniteGradient as error:
        return str(error)
    return None
