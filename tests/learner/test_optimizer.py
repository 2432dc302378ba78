"""The state of Adam, by parameter, and what a state may lack."""

import numpy as np
import torch

from mneme.controllers import Categorical, GruSettings, PolicySettings, PolicySpec, Vector, build_policy
from mneme.learner import Group, LearnerSettings
from mneme.learner.optimizer import Optimizer, State


def optimizer() -> Optimizer:
    settings = PolicySettings(controller=GruSettings(hidden_size=5))
    policy = build_policy(PolicySpec({"x": Vector(3)}, Categorical(2)), settings, 5, seed=0)
    return Optimizer(policy, LearnerSettings(num_threads=1), 1000, Group())


def stepped(one: Optimizer, seed: int) -> State:
    one._flat.gradient.copy_(torch.randn(one._flat.gradient.shape, generator=torch.Generator().manual_seed(seed)))
    one._apply()
    return one.state()


def test_a_state_that_was_taken_up_is_the_state() -> None:
    first, second = optimizer(), optimizer()
    second.set_state(stepped(first, 0), 0)
    assert second.state().keys() == first.state().keys() == first.expected_state().keys()
    for name, array in first.state().items():
        assert np.array_equal(second.state()[name], array), name


def test_moments_that_a_state_lacks_are_zero() -> None:
    state = stepped(optimizer(), 0)
    for key in ("step", "exp_avg", "exp_avg_sq"):
        del state[f"adam.{key}.policy_head.bias"]
    another = optimizer()
    stepped(another, 1)
    another.set_state(state, 0)
    found = another.state()
    assert not found["adam.exp_avg.policy_head.bias"].any() and found["adam.step.policy_head.bias"] == 1
    assert all(np.array_equal(found[name], array) for name, array in state.items())


def test_a_state_from_before_the_first_step_leaves_no_moments() -> None:
    before, one = optimizer().state(), optimizer()
    stepped(one, 0)
    one.set_state(before, 0)
    assert one.state().keys() == before.keys()
