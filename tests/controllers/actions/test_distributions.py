"""Action distributions: one suite over all of them against torch.distributions, then what is special about each."""

import math
import pickle

import pytest
import torch
from torch import Generator, Tensor, distributions

from mneme.controllers import ActionDistribution, Bernoulli, Categorical, Gaussian, Joint

MULTI_DISCRETE = Joint((Categorical(3), Categorical(1), Categorical(4)))
MIXED = Joint((Categorical(3), Gaussian(2, squash=True), Bernoulli(2), MULTI_DISCRETE))
DISTRIBUTIONS: list[ActionDistribution] = [
    Categorical(5),
    Bernoulli(3),
    Gaussian(2),
    Gaussian(2, squash=True),
    MULTI_DISCRETE,
    MIXED,
]
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
N = 64
LAST = 1 - 2.0**-24  # the largest float32 below 1


def draw(distribution: ActionDistribution, seed: int = 0, n: int = N) -> tuple[Tensor, Tensor]:
    """Parameters [n, A] in float64 and actions that they sample."""
    generator = Generator().manual_seed(seed)
    parameters = draw_parameters(distribution, n, generator)
    return parameters, distribution.sample(parameters, torch.rand(n, distribution.noise_size, generator=generator))


def draw_parameters(distribution: ActionDistribution, n: int, generator: Generator) -> Tensor:
    if isinstance(distribution, Joint):
        return torch.cat([draw_parameters(part, n, generator) for part in distribution.parts], -1)
    parameters = torch.randn(n, distribution.parameter_size, generator=generator, dtype=torch.float64)
    if isinstance(distribution, Gaussian):
        parameters[:, distribution.size :] *= 0.3
    return parameters


def split(distribution: Joint, parameters: Tensor) -> list[tuple[ActionDistribution, Tensor, slice]]:
    """Every part with its parameters and with its place among the slots of the action."""
    found, first, slot = [], 0, 0
    for part in distribution.parts:
        width = part.action_shape[0] if part.action_shape else 1
        found.append((part, parameters[..., first : first + part.parameter_size], slice(slot, slot + width)))
        first, slot = first + part.parameter_size, slot + width
    return found


def reference(distribution: ActionDistribution, parameters: Tensor) -> distributions.Distribution:
    if isinstance(distribution, Categorical):
        return distributions.Categorical(logits=parameters)
    if isinstance(distribution, Bernoulli):
        return distributions.Independent(distributions.Bernoulli(logits=parameters), 1)
    assert isinstance(distribution, Gaussian)
    normal = distributions.Normal(parameters[..., : distribution.size], parameters[..., distribution.size :].exp())
    return distributions.Independent(normal, 1)


def log_prob(distribution: ActionDistribution, parameters: Tensor, action: Tensor) -> Tensor:
    if isinstance(distribution, Joint):
        total = torch.zeros(len(parameters), dtype=parameters.dtype)
        for part, x, slots in split(distribution, parameters):
            total = total + log_prob(part, x, action[:, slots] if part.action_shape else action[:, slots.start].long())
        return total
    base = reference(distribution, parameters)
    if isinstance(distribution, Gaussian) and distribution.squash:
        transform = distributions.TanhTransform(cache_size=1)
        squashed = distributions.TransformedDistribution(base, transform)
        return squashed.log_prob(transform(action.double()))
    return base.log_prob(action.to(parameters.dtype))


def entropy(distribution: ActionDistribution, parameters: Tensor) -> Tensor:
    if isinstance(distribution, Joint):
        return torch.stack([entropy(part, x) for part, x, _ in split(distribution, parameters)]).sum(0)
    base = reference(distribution, parameters)
    if (
        isinstance(distribution, Gaussian) and distribution.squash
    ):  # a fine Riemann sum of -p log p, where p is that of tanh(u)
        mean, std = parameters[:, : distribution.size], parameters[:, distribution.size :].exp()
        z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
        p = torch.exp(-0.5 * z**2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
        u = mean.unsqueeze(-1) + std.unsqueeze(-1) * z
        log_derivative = -2 * torch.logaddexp(u, -u) + 2 * math.log(2)
        return base.entropy() + (log_derivative * p).sum((-2, -1))
    return base.entropy()


def kl(distribution: ActionDistribution, p: Tensor, q: Tensor) -> Tensor:
    if isinstance(distribution, Joint):
        pairs = zip(split(distribution, p), split(distribution, q), strict=True)
        return torch.stack([kl(part, x, y) for (part, x, _), (_, y, _) in pairs]).sum(0)
    return distributions.kl_divergence(reference(distribution, p), reference(distribution, q))


def gradients(x: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(x.sum(), inputs, retain_graph=True, materialize_grads=True)


@every_distribution
def test_densities_and_their_gradients_match_torch_distributions(distribution: ActionDistribution) -> None:
    (p, action), (q, _) = draw(distribution), draw(distribution, seed=1)
    p.requires_grad_()
    q.requires_grad_()
    pairs = {
        "log_prob": (distribution.log_prob(p, action), log_prob(distribution, p, action)),
        "entropy": (distribution.entropy(p), entropy(distribution, p)),
        "kl": (distribution.kl(p, q), kl(distribution, p, q)),
    }
    for name, (actual, expected) in pairs.items():
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        got, wanted = (
            torch.autograd.grad(x.sum(), (p, q), retain_graph=True, materialize_grads=True) for x in (actual, expected)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"d{n}: {m}")
    assert torch.equal(distribution.kl(p, p), torch.zeros(N, dtype=torch.float64))


@every_distribution
def test_actions_have_the_declared_shape_and_type_whatever_the_leading_axes(distribution: ActionDistribution) -> None:
    parameters, action = (x.float() if x.is_floating_point() else x for x in draw(distribution))
    uniform = torch.rand(N, distribution.noise_size, generator=Generator().manual_seed(4))
    action = distribution.sample(parameters, uniform)
    for x in (action, distribution.mode(parameters)):
        assert x.shape == (N, *distribution.action_shape) and x.dtype == distribution.action_dtype
    folded = distribution.sample(parameters.view(8, 8, -1), uniform.view(8, 8, -1))
    assert torch.equal(folded.flatten(0, 1), action)
    assert distribution.log_prob(parameters.view(8, 8, -1), folded).shape == (8, 8)
    features = distribution.features(action)
    assert features.shape == (N, distribution.feature_size) and features.dtype == torch.float32
    assert distribution.features(folded).shape == (8, 8, distribution.feature_size)


@every_distribution
@pytest.mark.parametrize("noise", [0.0, 1e-30, LAST])
def test_the_edges_of_the_noise_give_actions_of_finite_log_probability(
    distribution: ActionDistribution, noise: float
) -> None:
    parameters = draw(distribution)[0].float()
    action = distribution.sample(parameters, torch.full((N, distribution.noise_size), noise))
    assert action.isfinite().all() and distribution.log_prob(parameters, action).isfinite().all()


@pytest.mark.parametrize(
    "distribution", [*DISTRIBUTIONS[:3], MULTI_DISCRETE, Joint((Categorical(3), Gaussian(2)))], ids=str
)
def test_the_mode_is_the_most_probable_action_where_nothing_is_squashed(distribution: ActionDistribution) -> None:
    parameters = draw(distribution)[0].expand(200, N, -1)
    uniform = torch.rand(200, N, distribution.noise_size, generator=Generator().manual_seed(5))
    others = distribution.log_prob(parameters, distribution.sample(parameters, uniform))
    assert (distribution.log_prob(parameters, distribution.mode(parameters)) >= others - 1e-6).all()


@every_distribution
def test_a_distribution_is_a_value(distribution: ActionDistribution) -> None:
    twin = pickle.loads(pickle.dumps(distribution))
    assert twin == distribution and hash(twin) == hash(distribution)
    assert sum(other == distribution for other in DISTRIBUTIONS) == 1


@every_distribution
def test_masks_leave_allowed_actions_alone_and_exclude_the_others(distribution: ActionDistribution) -> None:
    parameters = draw(distribution)[0].float()
    allowed = torch.ones(N, distribution.mask_size, dtype=torch.bool)
    assert torch.equal(distribution.masked(parameters, allowed), parameters)
    if not distribution.mask_size:
        return
    allowed[:, 0] = False
    masked = distribution.masked(parameters, allowed)
    for noise in (0.0, 0.3, LAST):
        action = distribution.sample(masked, torch.full((N, distribution.noise_size), noise))
        assert (action.view(N, -1)[:, 0] != 0).all()
        assert distribution.log_prob(masked, action).isfinite().all()


def test_switches_have_the_right_frequencies_and_do_not_depend_on_each_other() -> None:
    probability, n = torch.tensor([0.1, 0.5, 0.9]), 200_000
    uniform = torch.rand(n, 3, generator=Generator().manual_seed(1))
    action = Bernoulli(3).sample(probability.logit().expand(n, 3), uniform).double()
    torch.testing.assert_close(action.mean(0).float(), probability, rtol=0, atol=5 * 0.5 / n**0.5)
    torch.testing.assert_close(action.T.corrcoef(), torch.eye(3, dtype=torch.float64), rtol=0, atol=5 / n**0.5)


def test_features_are_what_the_environment_was_given() -> None:
    assert Categorical(3).features(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert Bernoulli(2).features(torch.tensor([[1, 0]])).tolist() == [[1, 0]]
    u = torch.tensor([[0.5, -3.0]])
    assert torch.equal(Gaussian(2).features(u), u) and torch.equal(Gaussian(2, squash=True).features(u), u.tanh())
    action = Joint((Categorical(2), Gaussian(2))).features(torch.tensor([[1, 0.5, -3.0]]))
    assert action.tolist() == [[0, 1, 0.5, -3.0]]


def test_impossible_sizes_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="number of actions is 0; it must be at least 1"):
        Categorical(0)
    with pytest.raises(ValueError, match="number of switches is 0; it must be at least 1"):
        Bernoulli(0)
    with pytest.raises(ValueError, match="number of real actions is 0; it must be at least 1"):
        Gaussian(0)
    with pytest.raises(ValueError, match="joint action has no parts; give it at least one"):
        Joint(())
    with pytest.raises(ValueError, match=r"Categorical\(actions=16777217\).* exact up to 16777216; use fewer choices"):
        Joint((Categorical(2**24 + 1), Gaussian(1)))
