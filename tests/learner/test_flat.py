"""Parameters in one vector are still parameters, and Adam on it is Adam on each of them."""

import torch
from torch import nn

from mneme.learner.flat import FlatParameters


def test_parameters_and_vector_are_the_same_numbers() -> None:
    first, second = nn.Linear(3, 5), nn.Linear(7, 2)
    before = {name: p.detach().clone() for name, p in (*first.named_parameters(), *second.named_parameters("b"))}
    flat = FlatParameters([dict(first.named_parameters()), dict(second.named_parameters("b"))])
    for name, parameter in (*first.named_parameters(), *second.named_parameters("b")):
        assert torch.equal(parameter, before[name]) and parameter.is_leaf and parameter.requires_grad
        assert parameter.data_ptr() % 64 == 0 or parameter.storage_offset() % 16 == 0
    with torch.no_grad():
        flat.vectors[1].fill_(2.0)
        second.bias.fill_(3.0)
    assert torch.equal(second.weight, torch.full((2, 7), 2.0)) and (flat.vectors[1] == 3.0).sum() == 2
    assert torch.equal(first.weight, before["weight"])


def test_a_vector_falls_apart_into_what_it_was_joined_of() -> None:
    layer = nn.Linear(3, 5)
    flat = FlatParameters([dict(layer.named_parameters()), {}])
    weight = torch.randn(5, 3)
    named = flat.named(flat.joined({"weight": weight.t().contiguous().t(), "bias": None}))
    assert torch.equal(named["weight"], weight) and torch.equal(named["bias"], torch.zeros(5))
    assert [len(vector) for vector in flat.vectors] == [32, 0]


def test_adam_and_clipping_are_those_of_the_parameters() -> None:
    layers = [nn.Linear(6, 4).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    apart, together = layers
    flat = FlatParameters([{"weight": together.weight}, {"bias": together.bias}])
    optimizers = [
        torch.optim.Adam([{"params": [layer], "lr": lr} for layer, lr in zip(parts, (0.1, 0.02), strict=True)])
        for parts in (apart.parameters(), flat.vectors)
    ]
    for _ in range(5):
        gradients = {name: torch.randn_like(parameter) for name, parameter in apart.named_parameters()}
        for name, parameter in apart.named_parameters():
            parameter.grad = gradients[name].clone()
        flat.gradient.copy_(flat.joined(gradients))
        norms = [nn.utils.clip_grad_norm_(parameters, 1.5) for parameters in (list(apart.parameters()), flat.vectors)]
        torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
        for optimizer in optimizers:
            optimizer.step()
    for (name, a), (_, b) in zip(apart.named_parameters(), together.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0, msg=name)
