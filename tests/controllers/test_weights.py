"""The weights record: exact round trip, refusal of what does not fit, a digest of content."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mneme.controllers import Categorical, PolicySettings, PolicySpec, Vector, Weights, build_policy


def module(seed: int = 0) -> nn.Module:
    return build_policy(PolicySpec({"x": Vector(3)}, Categorical(2)), PolicySettings(), horizon=10, seed=seed)


def test_round_trip_is_exact() -> None:
    source, target = module(0), module(1)
    weights = pickle.loads(pickle.dumps(Weights.from_module(source, 7)))
    weights.load_into(target)
    assert weights.version == 7
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_the_record_is_a_read_only_copy() -> None:
    source = module()
    weights = Weights.from_module(source, 0)
    digest = weights.digest()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    assert weights.digest() == digest
    with pytest.raises(ValueError, match="read-only"):
        next(iter(weights.arrays.values()))[...] = 0


def test_loading_does_not_tie_the_module_to_the_record() -> None:
    weights, target = Weights.from_module(module(), 0), module(1)
    digest = weights.digest()
    weights.load_into(target)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1)
    assert weights.digest() == digest


def test_the_digest_sees_names_shapes_types_and_values_but_not_order_or_version() -> None:
    a, b = np.arange(4, dtype=np.float32), np.ones(2, dtype=np.float32)
    base = Weights(0, {"a": a, "b": b}).digest()
    assert base == Weights(9, {"b": b, "a": a}).digest()
    changed = [
        {"a": a, "c": b},
        {"a": a.reshape(2, 2), "b": b},
        {"a": a, "b": b.astype(float)},
        {"a": a + 1, "b": b},
    ]
    assert base not in {Weights(0, arrays).digest() for arrays in changed}


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    target = module(1)
    before = Weights.from_module(target, 0).digest()
    arrays = dict(Weights.from_module(module(0), 3).arrays)
    name = "value_head.weight"
    without = {k: v for k, v in arrays.items() if k != name}
    with pytest.raises(ValueError, match=f"version 3 lack parameter '{name}'; build"):
        Weights(3, without).load_into(target)
    with pytest.raises(ValueError, match="version 3 hold unexpected parameter 'extra'; build"):
        Weights(3, arrays | {"extra": arrays[name]}).load_into(target)
    with pytest.raises(ValueError, match=rf"'{name}' is torch.float32 \[1, 5\].*torch.float32 \[1, 128\].*; build"):
        Weights(3, arrays | {name: np.zeros((1, 5), np.float32)}).load_into(target)
    with pytest.raises(ValueError, match=rf"'{name}' is torch.float64.*torch.float32"):
        Weights(3, arrays | {name: arrays[name].astype(float)}).load_into(target)
    assert Weights.from_module(target, 0).digest() == before
