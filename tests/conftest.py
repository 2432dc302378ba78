"""Small real parts that many tests need."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import LearnerSettings
from mneme.rollout_workers import Collector, policy_spec

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a seed of its own is the same whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def counting_collector() -> Callable[..., Collector]:
    """A collector on the counting environment: episodes of several lengths that end in both ways."""

    def build(
        settings: LearnerSettings | None = None,
        *,
        kind: str = "gru",
        initial_carry: Any = "zero",
        lanes: int = 6,
        length: int = 23,
        seed: int = 0,
        **options: Any,
    ) -> Collector:
        env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), lanes)
        controller = ControllerSettings(kind=kind, hidden_size=16, initial_carry=initial_carry)
        policy = build_policy(policy_spec(env), PolicySettings(controller=controller), length, seed=seed)
        stride = (settings or LearnerSettings(mode="cached", carry_source="stored")).plan(length).carry_stride
        return Collector(env, policy, length, stride, seed=seed, **options)

    return build


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is logged under "mneme" while the test runs, in order."""
    sentences: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sentences.append(record.getMessage())

    logger, listener = logging.getLogger("mneme"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    yield sentences
    logger.removeHandler(listener)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Learning curves are empty files, as to draw one takes longer than a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mneme.reporting.curves.draw_learning_curve", lambda _, path, *__: path.touch())
        yield


@pytest.fixture
def copy_of() -> Callable[[Policy], Policy]:
    """An equal policy that shares no memory."""
    from copy import deepcopy

    return deepcopy
