"""Checkpoints of before in the form that they have today: the one place that knows what has changed within a format."""

from typing import Any

import numpy as np

from mneme.configuration.records import from_json
from mneme.configuration.renamed import under_new_names
from mneme.storage.checkpoint import Checkpoint

_LATER_RUN: dict[str, Any] = {
    "mode_schedule": {"stage": 0, "returns": []}, "evaluation_due": False, "ended": False, "best": None,
}  # fmt: skip
_LATER_LEARNER = {"nonfinite_in_a_row": np.array(0)}
"""What checkpoints did not hold at first, with the values that a run then had."""


def migrated(saved: Checkpoint) -> Checkpoint:
    """A checkpoint with everything that today's have, its settings under their present names.

    Raises:
        yaml.YAMLError, RecursionError: a text in its configuration is damaged.
    """
    config = under_new_names(from_json(saved.run["config"]))
    learner = _LATER_LEARNER | saved.arrays["learner"]
    return Checkpoint(_LATER_RUN | saved.run | {"config": config}, saved.arrays | {"learner": learner})
