"""Values as distributions over bins, against plain numbers in Python's floats."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import (
    VALUE_BINS,
    Categorical,
    ControllerSettings,
    Policy,
    PolicySettings,
    PolicySpec,
    Vector,
    Weights,
    build_policy,
)
from mneme.controllers.two_hot import bins_of, expectation, two_hot_of
from tests.controllers.two_hot_reference import plain_bins, plain_two_hot

BINNED = PolicySpec({"x": Vector(7)}, Categorical(4), value_bins=VALUE_BINS)
T, B = 11, 5


def encoded(targets: Tensor, count: int) -> Tensor:
    """The encoding [..., V] written out."""
    lower, upper_share = two_hot_of(targets, count)
    encoding = torch.zeros(*targets.shape, count, dtype=targets.dtype)
    encoding.scatter_(-1, lower[..., None], (1 - upper_share)[..., None])
    return encoding.scatter_add_(-1, lower[..., None] + 1, upper_share[..., None])


def targets_of(count: int, dtype: torch.dtype) -> Tensor:
    """At every bin, between them, at the ends and beyond both."""
    bins = bins_of(count, dtype, torch.device("cpu"))
    between = torch.lerp(bins[:-1], bins[1:], torch.rand(count - 1, dtype=dtype))
    beyond = torch.tensor([-1e30, -6e8, -4.9e8, 4.9e8, 6e8, 1e30, -math.inf, math.inf], dtype=dtype)
    return torch.cat([bins, between, beyond, 1e-6 * torch.randn(20, dtype=dtype)])


def test_the_bins_are_symexp_of_even_steps_and_each_has_its_mirror_image() -> None:
    for dtype, rel in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        bins = bins_of(255, dtype, torch.device("cpu"))
        assert bins.tolist() == pytest.approx(plain_bins(255), rel=rel, abs=1e-12)
        assert torch.equal(bins, -bins.flip(0)) and bins[127] == 0
        assert bins[-1] == pytest.approx(4.85e8, rel=1e-3)


@pytest.mark.parametrize("count", [3, 41, VALUE_BINS])
def test_the_encoding_is_the_published_one(count: int) -> None:
    bins = bins_of(count, torch.float64, torch.device("cpu")).tolist()
    targets = targets_of(count, torch.float64)
    for encoding, target in zip(encoded(targets, count).tolist(), targets.tolist(), strict=True):
        assert encoding == pytest.approx(plain_two_hot(target, bins), abs=1e-12), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_an_encoding_is_its_target_or_the_end_that_it_lies_beyond(dtype: torch.dtype) -> None:
    targets, epsilon = targets_of(VALUE_BINS, dtype), torch.finfo(dtype).eps
    encoding = encoded(targets, VALUE_BINS)
    assert (encoding >= 0).all() and ((encoding > 0).sum(-1) <= 2).all()
    bins = bins_of(VALUE_BINS, dtype, torch.device("cpu"))
    expected = targets.clamp(bins[0], bins[-1])
    torch.testing.assert_close((encoding * bins).sum(-1), expected, rtol=4 * epsilon, atol=epsilon)
    torch.testing.assert_close(expectation(encoding.log()), expected, rtol=16 * epsilon, atol=epsilon)


@pytest.mark.filterwarnings("error")
def test_the_encoding_is_the_same_of_numbers_that_lie_apart() -> None:
    targets = 1000 * torch.randn(7, 5)
    for found, expected in zip(two_hot_of(targets.t(), 41), two_hot_of(targets, 41), strict=True):
        assert torch.equal(found, expected.t())


def test_the_expectation_is_the_mean_and_so_is_its_gradient() -> None:
    logits = torch.randn(4, 3, 41, dtype=torch.float64)
    bins = torch.tensor(plain_bins(41), dtype=torch.float64)
    torch.testing.assert_close(expectation(logits), (logits.softmax(-1) * bins).sum(-1), rtol=1e-9, atol=0)
    assert torch.autograd.gradcheck(lambda x: expectation(x) / 1e8, logits.requires_grad_())


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_what_is_equally_likely_on_both_sides_cancels_to_the_bit(scale: float) -> None:
    half = scale * torch.randn(50, VALUE_BINS // 2)
    logits = torch.cat([half, scale * torch.randn(50, 1), half.flip(-1)], -1)
    assert torch.equal(expectation(logits), torch.zeros(50))


def make(spec: PolicySpec = BINNED, **settings: Any) -> Policy:
    controller = ControllerSettings(hidden_size=16, **settings)
    return build_policy(spec, PolicySettings(controller=controller), horizon=20, seed=0)


def scan(policy: Policy, observations: dict[str, Tensor], reset_TB: Tensor) -> Any:
    return policy.scan(observations, reset_TB, policy.initial_carry(B))


def test_every_value_of_a_fresh_policy_is_zero() -> None:
    out = scan(make(), {"x": 100 * torch.randn(T, B, 7)}, torch.zeros(T, B, dtype=torch.bool))
    assert out.values_TBV.shape == (T, B, VALUE_BINS)
    assert torch.equal(out.value_TB, torch.zeros(T, B))


def test_acting_says_the_value_that_the_scan_says() -> None:
    policy, generator = make(), Generator().manual_seed(1)
    bins = bins_of(VALUE_BINS, torch.float32, torch.device("cpu"))
    with torch.no_grad():  # likely values around 5, and a little of everything
        policy.value_head.bias.copy_(-0.5 * (bins.sign() * bins.abs().log1p() - 5).square())
        policy.value_head.weight.normal_(0, 0.1, generator=generator)
    observations, reset = {"x": torch.randn(T, B, 7, generator=generator)}, torch.zeros(T, B, dtype=torch.bool)
    out, carry = scan(policy, observations, reset), policy.initial_carry(B)
    assert out.value_TB.std() > 1
    torch.testing.assert_close(out.value_TB, (out.values_TBV.softmax(-1) * bins).sum(-1), rtol=1e-4, atol=1e-4)
    for t in range(T):
        now = {"x": observations["x"][t]}
        torch.testing.assert_close(policy.value(now, reset[t], carry), out.value_TB[t], rtol=1e-5, atol=1e-5)
        act = policy.act(now, reset[t], carry, torch.rand(B, 1, generator=generator))
        torch.testing.assert_close(act.value_B, out.value_TB[t], rtol=1e-5, atol=1e-5)
        carry = act.carry


def test_bins_leave_all_other_weights_alone() -> None:
    scalar = Weights.from_module(make(PolicySpec({"x": Vector(7)}, Categorical(4))), 0).arrays
    binned = Weights.from_module(make(), 0).arrays
    assert scalar.keys() == binned.keys()
    for name in scalar.keys() - {"value_head.weight", "value_head.bias"}:
        assert (scalar[name] == binned[name]).all(), name


def test_a_specification_with_bins_travels() -> None:
    assert pickle.loads(pickle.dumps(BINNED)) == BINNED != PolicySpec({"x": Vector(7)}, Categorical(4))


@pytest.mark.parametrize("count", [-1, 0, 2, 254])
def test_a_number_of_bins_without_a_middle_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"value_bins is {count}; it must be odd, so that one bin is 0, or 1 for no b"):
        PolicySpec({"x": Vector(7)}, Categorical(4), value_bins=count)
