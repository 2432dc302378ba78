"""A gradient that is not finite: only what may be at fault in the run at hand is named."""

import pytest
import torch

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner.batch import SequenceBatch
from mneme.learner.diagnosis import suspects
from mneme.learner.group import Group
from mneme.learner.returns import Returns
from mneme.rollout_workers import Collector, policy_spec


@pytest.mark.parametrize(
    ("part", "factor", "normalize", "stepped", "said", "unsaid"),
    [
        ("observation", 1e30, False, True, "part observation of the observations reaches", "learning_rate"),
        ("observation", 1e30, True, True, "lower learner.learning_rate (0.003)", "observation"),
        ("rewards", 1e20, False, False, "rewards reach", "observation"),
        ("targets", 1e20, False, True, "lower learner.gamma", "reach 0"),
        ("nothing", 1.0, False, True, "lower learner.learning_rate (0.003)", "rewards"),
        ("nothing", 1.0, False, False, "the network itself overflows over 9 steps", "learning_rate"),
    ],
)
def test_what_cannot_be_at_fault_is_not_named(
    part: str, factor: float, normalize: bool, stepped: bool, said: str, unsaid: str
) -> None:
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), 4)
    settings = PolicySettings(controller=ControllerSettings(hidden_size=8), normalize_observations=normalize)
    policy = build_policy(policy_spec(env), settings, 5, seed=0)
    batch = SequenceBatch.from_fragments([Collector(env, policy, 9, 9, seed=0).collect()[0]], torch.device("cpu"))
    targets = torch.ones(4, 9) * (factor if part == "targets" else 1.0)
    if part == "observation":
        batch.observations["observation"].mul_(factor)
    if part == "rewards":
        batch.rewards.add_(1.0).mul_(factor)
    sentence = suspects(policy, batch, Returns(targets, targets, targets), 3e-3, stepped, Group())
    assert said in sentence
    assert unsaid not in sentence
