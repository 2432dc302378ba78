"""Mixed precision: products in bfloat16, and everything that adds up or is compared in float32."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from mneme.controllers import (
    CONTROLLERS,
    Carry,
    Controller,
    ControllerSettings,
    Observation,
    Policy,
    PolicySettings,
    build_policy,
)
from mneme.controllers.given import kind_of
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner import gradients as gradients_module
from mneme.learner.device import products_in
from mneme.rollout_workers import Collector, Fragment, policy_spec

LANES, STEPS = 6, 23
COSINE, RELATIVE = 0.999, 0.05  # of the gradient with bf16 beside that with float32
RATIO = 1e-4
MIXED = LearnerSettings(precision="bf16", num_epochs=1, num_minibatches=2, num_threads=2, max_grad_norm=1e9)
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{kind: (kind, {}) for kind in CONTROLLERS},
    **{f"{kind}, two layers": (kind, {"num_layers": 2}) for kind in ("gru", "mamba2", "mingru", "pseudo_mamba")},
    **{f"{kind} in torch": (kind, {"backend": "torch"}) for kind in ("gru", "lstm", "mamba", "mamba2", "pseudo_mamba")},
    **{f"{kind}, layer_norm": (kind, {"layer_norm": True}) for kind in ("gru", "lstm")},
    "mamba2, learned start": ("mamba2", {"initial_carry": "learned"}),
    "transformer, gates": ("transformer", {"gate": "gru"}),
}


def collector_of(kind: str, **settings: Any) -> Collector:
    """On the counting environment, behind an encoder."""
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), LANES)
    controller = ControllerSettings(kind=kind, hidden_size=16, **settings)
    chosen = PolicySettings(encoder=(8,), controller=controller, normalize_observations=True)
    policy = build_policy(policy_spec(env), chosen, STEPS, seed=0)
    return Collector(env, policy, STEPS, STEPS, seed=0)


def gradients_of(policy: Policy, settings: LearnerSettings, fragment: Fragment) -> tuple[dict[str, Tensor], float]:
    """Those of the first minibatch of an update, and its ratio error."""
    learner, found = Learner(deepcopy(policy), settings, seed=3, total_timesteps=10_000), {}

    def capture() -> None:
        found.update(
            {n: p.grad.clone() for n, p in learner.policy.named_parameters() if p.grad is not None and not found}
        )

    learner._optimizer._descend = capture  # type: ignore[method-assign]
    report = learner.update([fragment.to_arrow()])
    return found, report.metrics["ratio_error"]


def scan_arguments(policy: Policy, steps: int = 7, lanes: int = 3) -> tuple[Observation, Tensor, Carry]:
    (name,) = policy.spec.observations
    generator = Generator().manual_seed(1)
    x_TBF = torch.rand(steps, lanes, *policy.spec.observations[name].shape, generator=generator)
    return {name: x_TBF}, torch.rand(steps, lanes, generator=generator) < 0.2, policy.initial_carry(lanes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_float32_within_the_stated_tolerance(variant: str) -> None:
    kind, settings = VARIANTS[variant]
    collector = collector_of(kind, **settings)
    collector.collect()
    fragment, _ = collector.collect()  # from the middle of episodes
    exact, _ = gradients_of(collector.policy, replace(MIXED, precision="float32", anchor="always"), fragment)
    mixed, ratio_error = gradients_of(collector.policy, MIXED, fragment)
    assert ratio_error < RATIO
    assert {gradient.dtype for gradient in mixed.values()} == {torch.float32}
    assert mixed.keys() == exact.keys()
    a, b = (torch.cat([found[name].double().flatten() for name in exact]) for found in (exact, mixed))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > COSINE
    assert 0 < (a - b).norm() / a.norm() < RELATIVE


@pytest.mark.parametrize("kind", CONTROLLERS)
@pytest.mark.parametrize("mode", ["full", "cached"])
def test_all_that_leaves_the_policy_and_every_loss_is_float32(
    kind: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor | float] = []
    loss_of = gradients_module.loss_of

    def watched(policy: Policy, *arguments: Any) -> Any:
        loss = loss_of(policy, *arguments)
        assert policy.mixed_precision
        seen.extend([loss.total, loss.ratio_error, *loss.sums.values(), *loss.carry.values()])
        return loss

    monkeypatch.setattr(gradients_module, "loss_of", watched)
    collector = collector_of(kind)
    learner = Learner(collector.policy, replace(MIXED, mode=mode), seed=3, total_timesteps=10_000)
    learner.update([collector.collect()[0].to_arrow()])
    out = learner.policy.scan(*scan_arguments(learner.policy))
    seen += [out.parameters_TBA, out.value_TB, *out.carry.values(), *out.signals.values()]
    assert {x.dtype for x in seen if isinstance(x, Tensor)} == {torch.float32}


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_pass_without_gradient_takes_none_from_the_next(kind: str) -> None:
    policy = collector_of(kind).policy
    policy.mixed_precision = True

    def gradients() -> list[Tensor]:
        out = policy.scan(*scan_arguments(policy))
        total = out.value_TB.square().sum() + out.parameters_TBA.square().sum()
        return list(torch.autograd.grad(total, list(policy.parameters()), materialize_grads=True))

    alone = gradients()
    with torch.no_grad():
        policy.scan(*scan_arguments(policy))
    after = gradients()
    for a, b in zip(alone, after, strict=True):
        assert torch.equal(a, b)
    assert sum(bool(gradient.any()) for gradient in after) > 4


def test_weights_are_rounded_anew_after_a_step() -> None:
    policy = collector_of("gru").policy
    policy.mixed_precision = True
    before = policy.scan(*scan_arguments(policy)).value_TB
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    after = policy.scan(*scan_arguments(policy)).value_TB
    assert not torch.equal(after, before)
    assert torch.equal(after, deepcopy(policy).scan(*scan_arguments(policy)).value_TB)


def test_threads_round_alike() -> None:
    policy = collector_of("mamba2").policy
    policy.mixed_precision = True
    here = policy.scan(*scan_arguments(policy)).value_TB
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(lambda: policy.scan(*scan_arguments(policy)).value_TB).result(), here)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_acting_stays_float32(kind: str) -> None:
    policy = collector_of(kind).policy
    observations, reset_TB, carry = scan_arguments(policy)
    given = {name: x[0] for name, x in observations.items()}, reset_TB[0], carry, torch.rand(3, 1)
    exact = policy.act(*given)
    policy.mixed_precision = True
    mixed = policy.act(*given)
    assert torch.equal(exact.log_prob_B, mixed.log_prob_B)
    assert torch.equal(exact.value_B, mixed.value_B)


def test_without_the_anchor_pass_the_first_ratio_would_be_that_of_two_precisions() -> None:
    collector = collector_of("mamba2")
    fragment, _ = collector.collect()
    learner = Learner(collector.policy, MIXED, seed=3, total_timesteps=10_000)
    learner.update([fragment.to_arrow()])  # which gives the statistics that normalise observations
    learner.weights().load_into(collector.policy)
    learner._targets.anchors = False
    assert learner.update([collector.collect(1)[0].to_arrow()]).metrics["ratio_error"] > 1e-5


def test_bf16_without_the_anchor_pass_is_refused() -> None:
    with pytest.raises(
        ValueError, match="learner.anchor is 'never'; precision=bf16 needs it, as acting is float32; use"
    ):
        LearnerSettings(precision="bf16", anchor="never")


def test_on_a_cpu_tf32_is_float32_to_the_bit() -> None:
    collector = collector_of("gru")
    fragment, _ = collector.collect()
    found = []
    for precision in ("float32", "tf32"):
        settings = replace(MIXED, precision=precision)  # type: ignore[arg-type]
        learner = Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=10_000)
        learner.update([fragment.to_arrow()])
        found.append(learner.weights().digest())
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_cuda_rounds_to_tf32_only_while_it_is_asked_to(precision: Any) -> None:
    places: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    with pytest.raises(KeyError), products_in(precision, torch.device("cuda")):
        assert [place.allow_tf32 for place in places] == [precision == "tf32"] * 2
        raise KeyError
    assert [place.allow_tf32 for place in places] == before


class Leaky(Controller):
    """A recurrence of one's own, with a product at every step."""

    def __init__(self, input_size: int, settings: ControllerSettings, horizon: int, generator: Generator) -> None:
        super().__init__(input_size, settings.hidden_size, {"h": (settings.hidden_size,)}, learn_initial=False)
        self.of_x = nn.Linear(input_size, settings.hidden_size)
        self.of_h = nn.Linear(settings.hidden_size, settings.hidden_size)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = torch.tanh(self.of_x(x_BD) + self.of_h(carry["h"]))
        return h_BH, {"h": h_BH}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_controller_that_does_not_say_otherwise_runs_in_float32(backend: str) -> None:
    kind = kind_of(Leaky) if backend == "auto" else "gru"
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), LANES)
    controller = ControllerSettings(kind=kind, hidden_size=16, backend=backend)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), STEPS, seed=0)
    exact = policy.scan(*scan_arguments(policy))
    policy.mixed_precision = True
    mixed = policy.scan(*scan_arguments(policy))
    assert torch.equal(exact.value_TB, mixed.value_TB)


def test_statistics_of_the_first_batch_and_rounding_go_together(counting_collector: Callable[..., Collector]) -> None:
    """Twice an anchor pass, as statistics begin: the first ratio is 1 in both updates, with stored carries too."""
    settings = replace(MIXED, mode="truncated", bptt_length=5, carry_source="stored")
    collector = counting_collector(settings, kind="mamba")
    learner = Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=10_000)
    for version in range(2):
        report = learner.update([collector.collect(version)[0].to_arrow()])
        learner.weights().load_into(collector.policy)
        assert report.metrics["ratio_error"] < RATIO
