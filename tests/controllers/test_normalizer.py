"""Running statistics against numpy's over all the data at once."""

import copy

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Categorical, OneHot, Policy, PolicySettings, PolicySpec, Vector, Weights, build_policy
from mneme.controllers.normalizer import Normalizer

DATA = torch.randn(60, 3, generator=Generator().manual_seed(0)) * torch.tensor([1.0, 1e3, 0.01]) + 500


def normalizer(*batches: Tensor) -> Normalizer:
    built = Normalizer(3)
    for batch in batches:
        built.update(batch)
    return built


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [1, 59], [20, 0, 40], [7, 13, 40]], ids=str)
def test_any_split_of_the_data_gives_the_mean_and_variance_of_all(sizes: list[int]) -> None:
    built, data = normalizer(*DATA.split(sizes)), DATA.double().numpy()
    np.testing.assert_allclose(built.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(built.variance, data.var(0), rtol=1e-9)
    assert built.count == 60


def test_normalised_data_have_mean_zero_and_variance_one() -> None:
    y = normalizer(DATA)(DATA)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=3e-3)  # float32 holds 500 to 3e-5, std is 0.01
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3), rtol=0, atol=3e-3)


def test_output_is_clipped_and_before_the_first_update_only_clipped() -> None:
    x = torch.tensor([[-3.0, 0.25, 9.5], [-1e6, 1e6, 11.0]])
    assert torch.equal(Normalizer(3)(x), torch.tensor([[-3.0, 0.25, 9.5], [-10.0, 10.0, 10.0]]))
    assert normalizer(DATA)(1e6 * x).abs().max() == 10


def test_a_constant_becomes_zero() -> None:
    constant = torch.full((9, 3), 0.1)
    assert torch.equal(normalizer(constant)(constant), torch.zeros(9, 3))


def policy(normalize: bool = True) -> Policy:
    spec = PolicySpec({"a": Vector(3), "category": OneHot((2,)), "b": Vector(2)}, Categorical(2))
    return build_policy(spec, PolicySettings(normalize_observations=normalize), horizon=10, seed=0)


def observed(seed: int) -> dict[str, Tensor]:
    g = Generator().manual_seed(seed)
    category = torch.randint(2, (5, 4, 1), generator=g)
    return {"a": torch.randn(5, 4, 3, generator=g), "category": category, "b": 7 + torch.randn(5, 4, 2, generator=g)}


def test_only_valid_steps_of_vectors_count() -> None:
    updated, valid = policy(), torch.rand(5, 4, generator=Generator().manual_seed(2)) < 0.5
    observations = observed(0)
    for name in ("a", "b"):
        observations[name][~valid] = torch.nan
    updated.update_statistics(observations, valid)
    statistics = [m for m in updated.modules() if isinstance(m, Normalizer)]
    assert [m.count for m in statistics] == [valid.sum()] * 2
    for module, name in zip(statistics, ("a", "b"), strict=True):
        torch.testing.assert_close(module.mean, observations[name][valid].double().mean(0))
    before = copy.deepcopy(updated.state_dict())
    updated.update_statistics(observed(1), torch.zeros(5, 4, dtype=torch.bool))
    torch.testing.assert_close(updated.state_dict(), before, rtol=0, atol=0)


def test_statistics_travel_with_the_weights_and_no_gradient_trains_them() -> None:
    source, target = policy(), policy()
    source.update_statistics(observed(0), torch.ones(5, 4, dtype=torch.bool))
    reset = torch.zeros(5, 4, dtype=torch.bool)
    expected = source.scan(observed(1), reset, source.initial_carry(4))
    assert not torch.equal(target.scan(observed(1), reset, target.initial_carry(4)).value_TB, expected.value_TB)
    weights = Weights.from_module(source, 1)
    weights.load_into(target)
    assert torch.equal(target.scan(observed(1), reset, target.initial_carry(4)).value_TB, expected.value_TB)
    assert Weights.from_module(target, 1).digest() == weights.digest()
    trained = dict(source.named_parameters())
    assert not [name for name in trained if "observations" in name]
    assert len(weights.arrays) == len(trained) + 2 * 3


def test_without_the_setting_nothing_is_kept_and_nothing_changes() -> None:
    plain = policy(normalize=False)
    before = Weights.from_module(plain, 0).digest()
    plain.update_statistics(observed(0), torch.ones(5, 4, dtype=torch.bool))
    assert Weights.from_module(plain, 0).digest() == before
    assert not [name for name in plain.state_dict() if "observations" in name]
