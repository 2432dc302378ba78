"""Acting is the scan with T = 1, whatever is observed and done; building is a function of settings and seed."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from mneme.controllers import (
    CONTROLLERS,
    Actor,
    Bernoulli,
    Categorical,
    ControllerSettings,
    Gaussian,
    Image,
    Joint,
    Observation,
    OneHot,
    Policy,
    PolicySettings,
    PolicySpec,
    Vector,
    Weights,
    build_policy,
)
from mneme.controllers.torch_globals import default_dtype_kept, threads_kept

SPEC = PolicySpec({"x": Vector(7)}, Categorical(4))
MIXED = Joint((Categorical(3), Gaussian(2, squash=True), Bernoulli(2)))
GRID = Image((5, 6, 2), channels_last=True, scale=1 / 255)
SPECS = {
    "vector": SPEC,
    "categories": PolicySpec({"x": OneHot((3, 2))}, Categorical(4)),
    "image": PolicySpec({"x": GRID}, Bernoulli(3)),
    "several": PolicySpec({"grid": GRID, "way": OneHot((4,)), "previous_reward": Vector(1)}, Gaussian(2)),
    "masked": PolicySpec({"x": Vector(7)}, Categorical(4), masked=True),
    "previous action": PolicySpec({"x": Vector(7)}, MIXED, previous_action=True),
    "everything": PolicySpec({"x": Vector(7), "grid": GRID}, MIXED, masked=True, previous_action=True),
    "stacked": PolicySpec({"x": Vector(7), "grid": GRID, "way": OneHot((3,))}, MIXED, previous_action=True, stack=3),
}
T, B = 23, 6


def make(spec: PolicySpec = SPEC, seed: int = 0, *, kind: str = "gru", **settings: Any) -> Policy:
    """A small policy; settings of the controller and of the policy may be mixed."""
    own = {name: settings.pop(name) for name in tuple(settings) if name in PolicySettings.__dataclass_fields__}
    controller = ControllerSettings(kind=kind, hidden_size=16, **settings)
    return build_policy(spec, PolicySettings(controller=controller, image_features=8, **own), horizon=20, seed=seed)


def moved(policy: Policy) -> Policy:
    """Every parameter off its initial value."""
    generator = Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return policy


def observed(spec: PolicySpec, generator: Generator, lead: tuple[int, ...] = (T, B)) -> Observation:
    """Random observations that fit the specification; every mask allows its last action."""
    found: Observation = {}
    for name, part in spec.observations.items():
        if isinstance(part, OneHot):
            found[name] = torch.stack([torch.randint(n, lead, generator=generator) for n in part.counts], -1)
        elif isinstance(part, Image):
            found[name] = torch.randint(256, (*lead, *part.shape), dtype=torch.uint8, generator=generator)
        else:
            found[name] = torch.randn(*lead, part.size, generator=generator)
    distribution = spec.actions
    if spec.masked:
        found["action_mask"] = torch.rand(*lead, distribution.mask_size, generator=generator) < 0.5
        found["action_mask"][..., -1] = True
    if spec.previous_action:
        parameters = torch.randn(*lead, distribution.parameter_size, generator=generator)
        found["previous_action"] = distribution.sample(
            parameters, torch.rand(*lead, distribution.noise_size, generator=generator)
        )
    return found


def at(observations: Observation, t: int) -> Observation:
    return {name: x[t] for name, x in observations.items()}


def check_acting_is_scanning(policy: Policy) -> None:
    distribution, generator = policy.action_distribution, Generator().manual_seed(1)
    observations = observed(policy.spec, generator)
    uniform = torch.rand(T, B, distribution.noise_size, generator=generator)
    reset = torch.rand(T, B, generator=generator) < 0.2
    carry, own = policy.initial_carry(B), policy.initial_carry(B)
    whole, actor = policy.scan(observations, reset, carry), Actor(policy)
    for t in range(T):
        value = policy.value(at(observations, t), reset[t], carry)
        torch.testing.assert_close(value, whole.value_TB[t], rtol=3e-6, atol=3e-6)
        act = policy.act(at(observations, t), reset[t], carry, uniform[t])
        log_prob = distribution.log_prob(whole.parameters_TBA[t], act.action_B)
        torch.testing.assert_close(act.log_prob_B, log_prob, rtol=1e-5, atol=5e-6)
        torch.testing.assert_close(act.value_B, whole.value_TB[t], rtol=3e-6, atol=3e-6)
        torch.testing.assert_close(
            act.action_B, distribution.sample(whole.parameters_TBA[t], uniform[t]), rtol=1e-6, atol=1e-6
        )
        assert act.action_B.dtype == distribution.action_dtype
        assert not any(x.requires_grad for x in (act.log_prob_B, act.value_B, *act.carry.values()))
        carry = act.carry
        kept = {name: value.clone() for name, value in own.items()}
        own_value = actor.value(at(observations, t), reset[t], own)
        own = kept
        torch.testing.assert_close(own_value, whole.value_TB[t], rtol=3e-6, atol=3e-6)
        of_many = actor.act(at(observations, t), reset[t], own, uniform[t])
        torch.testing.assert_close(of_many[:3], act[:3], rtol=1e-5, atol=5e-6)
        own = of_many.carry
    torch.testing.assert_close(carry, whole.carry, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own, whole.carry, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CONTROLLERS)
@pytest.mark.parametrize("layers", [{}, {"encoder": (12, 9), "heads": (10, 7)}])
@pytest.mark.parametrize("start", ["zero", "learned"])
def test_acting_is_scanning_with_every_controller(kind: str, layers: dict[str, Any], start: str) -> None:
    check_acting_is_scanning(moved(make(kind=kind, initial_carry=start, **layers)))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_acting_is_scanning_whatever_is_observed_and_done(spec: PolicySpec) -> None:
    policy = moved(make(spec, encoder=(12,), heads=(8,), normalize_observations=True))
    policy.update_statistics(observed(spec, Generator().manual_seed(5)), torch.ones(T, B, dtype=torch.bool))
    check_acting_is_scanning(policy)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_part_of_an_observation_reaches_the_value_and_every_parameter_gets_gradient(spec: PolicySpec) -> None:
    policy = moved(make(spec, encoder=(9,), heads=(8,), initial_carry="learned"))
    generator = Generator().manual_seed(3)
    observations, reset = observed(spec, generator), torch.zeros(T, B, dtype=torch.bool)
    output = policy.scan(observations, reset, policy.initial_carry(B))
    other = observed(spec, generator)
    for name in observations.keys() - {"action_mask"}:
        changed = policy.scan({**observations, name: other[name]}, reset, policy.initial_carry(B))
        assert not torch.equal(changed.value_TB, output.value_TB), name
    action = policy.action_distribution.mode(output.parameters_TBA)
    (policy.action_distribution.log_prob(output.parameters_TBA, action).sum() + output.value_TB.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in policy.parameters())


def test_masked_actions_are_never_done_and_do_not_change_the_value() -> None:
    spec, generator = SPECS["everything"], Generator().manual_seed(4)
    policy, reset = moved(make(spec)), torch.zeros(B, dtype=torch.bool)
    for _ in range(20):
        observations = observed(spec, generator, (B,))
        mask = observations["action_mask"]
        for greedy in (False, True):
            act = policy.act(
                observations, reset, policy.initial_carry(B), torch.rand(B, 5, generator=generator), greedy
            )
            assert mask[torch.arange(B), act.action_B[:, 0].long()].all() and act.log_prob_B.isfinite().all()
        free = policy.value({**observations, "action_mask": mask | True}, reset, policy.initial_carry(B))
        assert torch.equal(act.value_B, free)


def test_the_action_before_an_episode_is_not_looked_at() -> None:
    spec, generator = SPECS["previous action"], Generator().manual_seed(4)
    policy, observations = moved(make(spec)), observed(spec, generator, (B,))
    reset = torch.tensor([True, False] * (B // 2))
    odd = {**observations, "previous_action": torch.full((B, 5), torch.nan)}
    values = [policy.value(o, reset, policy.initial_carry(B)) for o in (observations, odd)]
    assert torch.equal(values[0].isfinite(), torch.ones(B, dtype=torch.bool))
    assert torch.equal(values[1].isfinite(), reset) and torch.equal(values[0][reset], values[1][reset])


def test_greedy_takes_the_mode_and_ignores_the_noise() -> None:
    policy = moved(make())
    observations, reset = {"x": torch.randn(B, 7, generator=Generator().manual_seed(2))}, torch.ones(B).bool()
    parameters = policy.scan({"x": observations["x"][None]}, reset[None], policy.initial_carry(B)).parameters_TBA[0]
    for noise in (0.0, 0.999):
        act = policy.act(observations, reset, policy.initial_carry(B), torch.full((B, 1), noise), greedy=True)
        assert torch.equal(act.action_B, parameters.argmax(-1))


def test_a_fresh_policy_is_nearly_uniform() -> None:
    observations, reset = observed(SPEC, Generator().manual_seed(0)), torch.zeros(T, B, dtype=torch.bool)
    probabilities = make().scan(observations, reset, make().initial_carry(B)).parameters_TBA.softmax(-1)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.25), rtol=0, atol=0.03)


def test_the_heads_hidden_layers_are_apart() -> None:
    policy, y = moved(make(heads=(8, 5))), torch.randn(B, 16, generator=Generator().manual_seed(2))
    before = policy.heads(y, {})
    with torch.no_grad():
        policy.policy_hidden[0].weight.add_(1)
    after = policy.heads(y, {})
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    assert policy.policy_head.in_features == policy.value_head.in_features == 5


def test_the_norm_follows_the_setting() -> None:
    assert isinstance(make().norm, nn.LayerNorm)
    assert isinstance(make(output_norm=False).norm, nn.Identity)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_seed_decides_the_bits(spec: PolicySpec) -> None:
    digests = [Weights.from_module(make(spec, seed), 0).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_the_number_of_threads_does_not_decide_the_bits_and_stays() -> None:
    digests = []
    with threads_kept():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            digests.append(Weights.from_module(make(encoder=(128, 128)), 0).digest())
            assert torch.get_num_threads() == threads
    assert digests[0] == digests[1]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_default_type_does_not_decide_the_bits_and_stays(spec: PolicySpec) -> None:
    expected = make(spec)
    with default_dtype_kept():
        torch.set_default_dtype(torch.float64)
        policy = make(spec)
        assert torch.get_default_dtype() == torch.float64
        reset_TB, carry = torch.zeros(2, 3, dtype=torch.bool), policy.initial_carry(3)
        assert {x.dtype for x in carry.values()} <= {torch.float32}
        assert policy.scan(policy.blank(2, 3), reset_TB, carry).value_TB.dtype == torch.float32
    assert Weights.from_module(policy, 0).digest() == Weights.from_module(expected, 0).digest()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_specification_travels_and_a_copied_policy_shares_nothing(spec: PolicySpec) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec
    policy = make(spec, normalize_observations=True)
    twin, digest = copy.deepcopy(policy), Weights.from_module(policy, 0).digest()
    twin.update_statistics(observed(spec, Generator().manual_seed(0)), torch.ones(T, B, dtype=torch.bool))
    moved(twin)
    assert Weights.from_module(policy, 0).digest() == digest


def scan(policy: Policy, observations: dict[str, Tensor]) -> None:
    policy.scan(observations, torch.zeros(T, B, dtype=torch.bool), policy.initial_carry(B))


def test_observations_that_do_not_fit_get_one_sentence() -> None:
    spec = SPECS["everything"]
    policy, good = make(spec), observed(spec, Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"holds \['action_mask', 'grid', 'x'\]; this policy needs exactly .*'p"):
        scan(policy, {name: x for name, x in good.items() if name != "previous_action"})
    with pytest.raises(ValueError, match=r"holds .*'y'\]; this policy needs exactly"):
        scan(policy, {**good, "y": good["x"]})
    with pytest.raises(ValueError, match=r"'x' is torch.float32 of shape \[23, 6, 8\]; it must be .* \[23, 6, 7\]"):
        scan(policy, {**good, "x": torch.zeros(T, B, 8)})
    with pytest.raises(ValueError, match=r"'x' is torch.float64 of shape \[23, 6, 7\]; it must be torch.float32"):
        scan(policy, {**good, "x": good["x"].double()})
    with pytest.raises(ValueError, match=r"'grid' is torch.int64 .*; it must be torch.uint8 or torch.float32"):
        scan(policy, {**good, "grid": good["grid"].long()})
    with pytest.raises(
        ValueError, match=r"'action_mask' is torch.float32 .*; it must be torch.bool of .* \[23, 6, 3\]"
    ):
        scan(policy, {**good, "action_mask": good["action_mask"].float()})
    with pytest.raises(ValueError, match=r"'grid' is .* of shape \[22, 6, 5, 6, 2\]; it must be"):
        scan(policy, {**good, "grid": good["grid"][1:]})


def test_bad_specifications_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="the observation has no parts; a policy needs at least one"):
        PolicySpec({}, Categorical(2))
    with pytest.raises(ValueError, match="part is named 'action_mask', which has a meaning of its own; rename it"):
        PolicySpec({"action_mask": Vector(2)}, Categorical(2))
    with pytest.raises(ValueError, match=r"Gaussian\(size=1, squash=False\) cannot be masked; leave the action mask"):
        PolicySpec({"x": Vector(2)}, Gaussian(1), masked=True)


def test_bad_sizes_and_names_get_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"controller.kind is 'grue'; choose one of .*nearest: 'gru'"):
        make(kind="grue")
    with pytest.raises(ValueError, match=r"controller.hidden_size is 0; it must be at least 2"):
        ControllerSettings(hidden_size=0)
    with pytest.raises(ValueError, match=r"controller.initial_carry is 'random'"):
        ControllerSettings(initial_carry="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"controller.expected_horizon is 0"):
        ControllerSettings(expected_horizon=0)
    with pytest.raises(ValueError, match=r"encoder\[1\] is 0"):
        PolicySettings(encoder=(4, 0))
    with pytest.raises(ValueError, match=r"policy.heads\[0\] is -1; it must be at least 1"):
        PolicySettings(heads=(-1,))
    with pytest.raises(ValueError, match="horizon is 0"):
        build_policy(SPEC, PolicySettings(), horizon=0, seed=0)
