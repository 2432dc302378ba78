"""What is worked on at once changes nothing: losses and gradients are those of all windows together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.controllers.mlp import MlpController
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.gradients import shard_gradients
from mneme.learner.returns import Returns
from mneme.rollout_workers import Collector, policy_spec

LENGTH, LANES = 23, 5
MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "truncated": {"mode": "truncated", "bptt_length": 5, "carry_source": "stored"},
    "burn-in": {"mode": "truncated", "bptt_length": 6, "burn_in": 3, "carry_source": "stored"},
    "cached": {"mode": "cached", "carry_source": "stored"},
    "zero": {"mode": "truncated", "bptt_length": 5, "carry_source": "zero"},
    "fresh": {"mode": "truncated", "bptt_length": 5},
    "fresh cached": {"mode": "cached"},
}


class Level(MlpController):
    """No memory, and a loss that is no sum over steps: windows differ in nothing but what they see of the mean."""

    def signals(self, y_TBH: Tensor) -> dict[str, Tensor]:
        return {"level": y_TBH[..., 0], "other": y_TBH[..., 1]}

    def auxiliary_loss(self, means_N: Mapping[str, Tensor]) -> Tensor:
        return 50 * (means_N["level"] - 0.3).square() * means_N["other"].exp()


class Doubled(torch.nn.Module):
    """An encoder: what is observed, in double precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


CONTROLLERS: dict[str, ControllerSettings] = {
    "level": ControllerSettings(kind="tests.learner.test_pieces:Level", hidden_size=6),
    "gru": ControllerSettings(kind="gru", hidden_size=6, initial_carry="learned", backend="torch"),
    "transformer": ControllerSettings(kind="transformer", hidden_size=8, window_size=9),
    "two pseudo_mamba": ControllerSettings(
        kind="pseudo_mamba",
        num_layers=2,
        hidden_size=6,
        backend="torch",
        num_slots=3,
        slot_size=4,
        d_state=3,
        gate_coef=50.0,
    ),
}


def collected(controller: str) -> tuple[Policy, SequenceBatch, Returns]:
    """In double precision, with a carry before every step, and a step in seven that does not count."""
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), LANES)
    policy = build_policy(policy_spec(env), PolicySettings(controller=CONTROLLERS[controller]), LENGTH, seed=0)
    collector = Collector(env, policy, LENGTH, 1, seed=0)
    collector.collect()
    batch = SequenceBatch.from_fragments([collector.collect()[0]], torch.device("cpu"))
    valid = torch.arange(LANES * LENGTH).view(LANES, LENGTH) % 7 > 0
    batch = replace(batch, valid=valid, log_probs=batch.log_probs.double(), values=batch.values.double())
    carries = {name: x.double() for name, x in batch.carries.items()}
    batch = replace(batch, stored=StoredCarries.of(carries, batch.valid.device))
    torch.set_default_dtype(torch.float64)
    policy.double().encoder = Doubled()
    noise = torch.randn(2, LANES, LENGTH, generator=torch.Generator().manual_seed(1))
    return policy, batch, Returns(noise[0], noise[1], torch.ones_like(noise[0]))


@pytest.fixture(autouse=True)
def single_precision_afterwards() -> Any:
    yield
    torch.set_default_dtype(torch.float32)


def total(
    monkeypatch: pytest.MonkeyPatch, mode: str, at_once: int, shards: list[list[int]], parts: Any
) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients and sums over shards that work on so many windows at once."""
    policy, batch, returns = parts
    monkeypatch.setattr("mneme.learner.windows._windows_at_once", lambda *_: at_once)
    settings = LearnerSettings(**MODES[mode])
    results = [
        shard_gradients(policy, settings, batch, returns, torch.tensor(rows), int(batch.valid.sum())) for rows in shards
    ]
    gradients = [sum(x for x in g if x is not None) for g in zip(*(r.gradients for r in results), strict=True)]
    return gradients, {name: sum(r.sums[name] for r in results) for name in results[0].sums}  # type: ignore[return-value]


def assert_equal(a: tuple[list[Tensor], dict[str, float]], b: tuple[list[Tensor], dict[str, float]]) -> None:
    assert a[1] == pytest.approx(b[1], rel=1e-9, abs=1e-12)
    for x, y in zip(a[0], b[0], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("controller", list(CONTROLLERS))
@pytest.mark.parametrize("mode", list(MODES))
def test_pieces_and_shards_add_up_to_one_batch(monkeypatch: pytest.MonkeyPatch, controller: str, mode: str) -> None:
    parts = collected(controller)
    one = total(monkeypatch, mode, 10**6, [[0, 1, 2, 3, 4]], parts)
    assert any(float(gradient.abs().max()) > 0.01 for gradient in one[0])
    for at_once, shards in ((3, [[0, 1, 2, 3, 4]]), (2, [[0, 1], [2, 3, 4]]), (12, [[4, 2, 0], [1, 3]])):
        assert_equal(total(monkeypatch, mode, at_once, shards, parts), one)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "full"])
def test_without_memory_every_mode_has_the_auxiliary_loss_and_the_gradient_of_full(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    parts = collected("level")
    full = total(monkeypatch, "full", LANES, [[0, 1, 2, 3, 4]], parts)
    assert full[1]["auxiliary_loss"] > 1
    assert_equal(total(monkeypatch, mode, 4, [[0, 1], [2, 3, 4]], parts), full)


@pytest.mark.parametrize("mode", ["truncated", "burn-in", "cached", "fresh", "fresh cached"])
def test_an_auxiliary_loss_is_worth_the_same_in_every_mode(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    parts = collected("two pseudo_mamba")
    rows = [[0, 1, 2, 3, 4]]
    expected, got = (total(monkeypatch, m, n, rows, parts)[1] for m, n in (("full", LANES), (mode, 4)))
    found, whole = got["auxiliary_loss"], expected["auxiliary_loss"]
    assert found == pytest.approx(whole, rel=1e-4)  # carries were stored in single precision
    assert {"signal/gate_0", "signal/gate_1"} < got.keys()


def test_what_an_auxiliary_loss_itself_learns_has_its_gradient_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch, returns = collected("level")
    policy.controller.target = torch.nn.Parameter(torch.tensor(0.2))
    monkeypatch.setattr(Level, "auxiliary_loss", lambda self, means_N: (means_N["level"] - self.target).square())
    one, many = (total(monkeypatch, "cached", n, [[0, 1, 2, 3, 4]], (policy, batch, returns)) for n in (10**6, 4))
    assert_equal(many, one)
    learned = [name for name, _ in policy.named_parameters()].index("controller.target")
    assert float(one[0][learned]) != 0
