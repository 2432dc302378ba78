"""Episodes may begin with observations that say nothing: no gradient may grow over them, whatever is normalised."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from mneme.controllers import (
    CONTROLLERS,
    Categorical,
    ControllerSettings,
    Image,
    PolicySettings,
    PolicySpec,
    Vector,
    build_policy,
)

STEPS, BOUND = 200, 1000
KINDS: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in CONTROLLERS] + [
    ("gru", {"layer_norm": True}),
    ("lstm", {"layer_norm": True}),
    ("nbrc", {"cellular": True}),
    ("pseudo_mamba", {"query": "state"}),
    ("pseudo_mamba", {"rule": "classic"}),
    ("transformer", {"gate": "gru"}),
]


def norm(gradients: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))


@pytest.mark.parametrize("start,layers", [("zero", 1), ("learned", 2)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_stay_bounded_over_blank_steps(kind: tuple[str, dict[str, Any]], start: str, layers: int) -> None:
    """Of what is said after 200 of them, by each observation, by the first carry, and by the parameters."""
    found: dict[str, float] = {}
    for chrono in (True, False):
        controller = ControllerSettings(
            kind=kind[0], **kind[1], num_layers=layers, hidden_size=8, chrono=chrono, initial_carry=start  # type: ignore[arg-type]
        )  # fmt: skip
        spec = PolicySpec({"x": Vector(3)}, Categorical(2))
        policy = build_policy(spec, PolicySettings(controller=controller), STEPS, seed=0)
        reset = torch.zeros(STEPS, 1, dtype=torch.bool)
        for name, blank in {"zeros": [0.0, 0, 0], "ones": [1.0, 1, 1], "a constant": [-2.0, 0.3, 1]}.items():
            x = torch.tensor(blank).expand(STEPS, 1, 3).clone().requires_grad_()
            carry = {part: value.detach().requires_grad_() for part, value in policy.initial_carry(1).items()}
            output = policy.scan({"x": x}, reset, carry)
            loss = output.value_TB[-1].sum() + output.parameters_TBA[-1, 0, 0]
            inputs = [x, *carry.values(), *policy.parameters()]
            of_x, *of_rest = torch.autograd.grad(loss, inputs, allow_unused=True)
            of_carry, of_parameters = of_rest[: len(carry)], of_rest[len(carry) :]
            sizes = float(of_x.norm(dim=2).max()), norm(of_carry), norm(of_parameters)
            found |= {f"{part} at {name}, chrono={chrono}": size for part, size in zip("xcp", sizes, strict=True)}
    assert all(size < BOUND for size in found.values()), found


def test_gradients_stay_bounded_over_blank_images() -> None:
    spec = PolicySpec({"image": Image((8, 8, 3), channels_last=True, scale=1 / 255)}, Categorical(2))
    for kind, kwargs in (("gru", {"layer_norm": True}), ("mamba2", {})):
        controller = ControllerSettings(kind=kind, hidden_size=8, **kwargs)
        policy = build_policy(spec, PolicySettings(controller=controller, image_features=8), 20, seed=0)
        images, reset = torch.zeros(20, 1, 8, 8, 3, dtype=torch.uint8), torch.zeros(20, 1, dtype=torch.bool)
        output = policy.scan({"image": images}, reset, policy.initial_carry(1))
        loss = output.value_TB[-1].sum() + output.parameters_TBA[-1, 0, 0]
        assert norm(torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)) < BOUND
