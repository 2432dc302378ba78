"""The compiled objective is the plain one: its sums, and the gradients of the outputs and of every parameter."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mneme.controllers import (
    Categorical,
    Gaussian,
    GruSettings,
    Policy,
    PolicySettings,
    PolicySpec,
    Vector,
    build_policy,
)
from mneme.controllers.acting import MOST_ACTIONS, heads_compile
from mneme.learner import LearnerSettings
from mneme.learner.objective import Objective, Steps, plain_objective
from mneme.learner.objective.numba import compiled_objective

K, W, H = 7, 5, 24


def policy_of(
    actions: int = 4,
    *,
    norm: bool = True,
    heads: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    **spec: Any,
) -> Policy:
    settings = PolicySettings(controller=GruSettings(hidden_size=H, output_norm=norm), heads=heads)
    parts = {"x": Vector(3)}
    policy = build_policy(PolicySpec(parts, Categorical(actions), **spec), settings, 5, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters_of_heads(policy):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


def parameters_of_heads(policy: Policy) -> list[Tensor]:
    hidden = [*policy.norm.parameters(), *policy.policy_hidden.parameters(), *policy.value_hidden.parameters()]
    return [*hidden, *policy.policy_head.parameters(), *policy.value_head.parameters()]


def steps_of(policy: Policy, y: Tensor, dtype: torch.dtype = torch.float64) -> Steps:
    """Steps of a policy a little older, so that some ratios are clipped, with a few that do not count."""
    generator = torch.Generator().manual_seed(2)

    def normal() -> Tensor:
        return torch.randn(K, W, generator=generator, dtype=dtype)

    actions = torch.randint(policy.action_distribution.mask_size, (K, W), generator=generator)
    with torch.no_grad():
        parameters, values = policy.heads(y, {})
        old = policy.action_distribution.log_prob(parameters, actions) + 0.3 * normal()
        old_values = values.squeeze(-1) + 0.5 * normal()
    mask = torch.rand(K, W, generator=generator) > 0.2
    rest = (mask, actions, old.masked_fill(~mask, 5.0), old_values, normal(), normal())
    return Steps({}, torch.zeros(K, W, dtype=torch.bool), None, *rest)


def outputs(dtype: torch.dtype = torch.float64) -> Tensor:
    """Ordinary ones, some next to nothing, which the norm damps, and one of zeros."""
    y = torch.randn(K, W, H, generator=torch.Generator().manual_seed(3), dtype=dtype)
    y[0] *= 1e-3
    y[1] *= 1e-2
    y[2, 0] = 0
    return y.requires_grad_()


def gradients(policy: Policy, found: Objective, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(found.total / 3, (y, *parameters_of_heads(policy))))


SETTINGS = [
    {},
    {"dual_clip": 1.5, "clip_range": 0.1},
    {"value_loss": "huber", "vf_coef": 0.3},
    {"clip_range_vf": 0.2, "ent_coef": 0.05},
    {"clip_range_vf": 0.2, "value_loss": "huber"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    "norm,actions,heads", [(True, 4, ()), (False, 4, ()), (True, 1, ()), (True, 4, (9,)), (False, 3, (6, 5))]
)
def test_it_is_the_plain_objective(settings: dict[str, Any], norm: bool, actions: int, heads: tuple[int, ...]) -> None:
    policy, y, s = policy_of(actions, norm=norm, heads=heads), outputs(), LearnerSettings(**settings)
    steps = steps_of(policy, y)
    plain, compiled = plain_objective(policy, s, steps, y, 0.2), compiled_objective(policy, s, steps, y, 0.2)
    torch.testing.assert_close(compiled.total, plain.total, rtol=1e-10, atol=1e-10)
    assert compiled.ratio_error == pytest.approx(float(plain.ratio_error), rel=1e-10)
    assert compiled.sums.keys() == plain.sums.keys()
    for name, value in plain.sums.items():
        assert compiled.sums[name] == pytest.approx(float(value), rel=1e-10, abs=1e-10), name
    for ours, theirs in zip(gradients(policy, compiled, y), gradients(policy, plain, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_something_is_clipped_in_these_cases() -> None:
    policy, y = policy_of(), outputs()
    sums = plain_objective(policy, LearnerSettings(), steps_of(policy, y), y).sums
    assert 3 < sums["clip_fraction"] < 25


def test_in_single_precision_it_is_as_near_the_truth() -> None:
    policy, y = policy_of(dtype=torch.float32), outputs(torch.float32)
    exact_policy, exact_y = policy_of(dtype=torch.float64), outputs(torch.float32).detach().double().requires_grad_()
    exact_policy.load_state_dict(policy.state_dict())
    steps, s = steps_of(policy, y, torch.float32), LearnerSettings()
    wide = Steps(*(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in steps))
    exact = gradients(exact_policy, plain_objective(exact_policy, s, wide, exact_y), exact_y)
    compiled = gradients(policy, compiled_objective(policy, s, steps, y), y)
    for ours, truth in zip(compiled, exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.parametrize("what", ["y", "value", "policy", "old"])
def test_what_is_not_a_number_shows(what: str) -> None:
    policy, y = policy_of(), outputs()
    steps = steps_of(policy, y)
    steps = steps._replace(mask=torch.ones_like(steps.mask))
    with torch.no_grad():
        if what == "y":
            y[3, 2, 1] = torch.nan
        elif what == "old":
            steps.old_log_probs[3, 2] = torch.nan
        else:
            getattr(policy, f"{what}_head").weight[0, 0] = torch.nan
    found = compiled_objective(policy, LearnerSettings(), steps, y)
    assert not np.isfinite(found.total.item())
    assert not all(gradient.isfinite().all() for gradient in gradients(policy, found, y))
    if what != "value":
        assert not np.isfinite(found.ratio_error)


def test_steps_that_do_not_count_may_hold_anything() -> None:
    policy, y = policy_of(), outputs()
    steps = steps_of(policy, y)
    before = gradients(policy, compiled_objective(policy, LearnerSettings(), steps, y), y)
    with torch.no_grad():
        y[~steps.mask] = torch.nan
    steps.advantages[~steps.mask] = torch.inf
    steps.old_log_probs[~steps.mask] = torch.nan
    after = gradients(policy, compiled_objective(policy, LearnerSettings(), steps, y), y)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_takes_one_choice_of_a_few() -> None:
    y = outputs()
    assert heads_compile(policy_of(), y)
    assert not heads_compile(policy_of(masked=True), y)
    assert not heads_compile(policy_of(), y.float())
    assert not heads_compile(policy_of(MOST_ACTIONS + 1), y)
    assert not heads_compile(policy_of(value_bins=255), y)
    gaussian = policy_of()
    gaussian.action_distribution = Gaussian(2)
    assert not heads_compile(gaussian, y)
