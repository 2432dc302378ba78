"""Exported steps act as the agents that they are from."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import mneme
from mneme.cli import main
from mneme.controllers import CONTROLLERS, Carry, Controller, ControllerSettings, Policy, PolicySettings, build_policy
from mneme.exporting import export_policy
from mneme.rollout_workers import SpaceSettings
from mneme.rollout_workers.spaces import SpaceAdapter

STEPS, B = 100, 3
OBSERVED = spaces.Dict({"numbers": spaces.Box(-9, 9, (4,), np.float32), "kind": spaces.Discrete(3)})
ACTED = spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2)))
QUICK = "gru"  # each takes torch seconds

Run = Callable[[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]], tuple[np.ndarray, dict[str, np.ndarray]]]


def agent_of(kind: str, **settings: Any) -> mneme.Agent:
    """An agent that reads everything there is, whose actions are not all alike."""
    spaces_read = SpaceSettings(previous_action=True, previous_reward=True, stack=3)
    controller = ControllerSettings(kind=kind, hidden_size=8, **settings)
    spec = SpaceAdapter(OBSERVED, ACTED, spaces_read, masked=True).spec
    layers = PolicySettings(controller=controller, encoder=(9,), heads=(7,), normalize_observations=True)
    policy = build_policy(spec, layers, 5, seed=3)
    with torch.no_grad():
        policy.policy_head.weight.mul_(100)
    seen = {name: part.float().normal_(2, 3).to(part.dtype) for name, part in policy.blank(1, 64).items()}
    policy.update_statistics(seen, torch.ones(1, 64, dtype=torch.bool))
    return mneme.Agent(policy, OBSERVED, ACTED, spaces_read)


def onnx_step(path: Path) -> Run:
    """One step in onnxruntime, by the documented names."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    outputs = [output.name for output in session.get_outputs()]

    def run(parts: Any, reset: Any, carry: Any) -> Any:
        inputs = {**parts, "reset": reset, **{f"carry.{name}": part for name, part in carry.items()}}
        found = dict(zip(outputs, session.run(None, inputs), strict=True))
        return found["action"], {name: found[f"next_carry.{name}"] for name in carry}

    return run


def torch_step(path: Path) -> Run:
    program = torch.export.load(path).module()

    def run(parts: Any, reset: Any, carry: Any) -> Any:
        def tensors(arrays: Any) -> Any:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

        action, _, carry = program(tensors(parts), torch.from_numpy(reset), tensors(carry))
        return action.numpy(), {name: part.numpy() for name, part in carry.items()}

    return run


def check_parity(agent: mneme.Agent, run: Run) -> None:
    """100 steps with resets and blank observations, of more environments than were there at the export."""
    rng = np.random.default_rng(0)
    carry = agent.initial_carry(B)
    memory = {name: np.full(part.shape, 7, part.numpy().dtype) for name, part in carry.memory.items()}  # of no episode
    actions = set()
    for t in range(STEPS):
        numbers = rng.normal(size=(B, 4)).astype(np.float32) * (t % 10 > 3)
        kind = rng.integers(0, 3, B)
        mask = rng.random((B, 4)) < 0.7
        mask[:, t % 4] = True
        reset, reward = (rng.random(B) < 0.1) | (t == 0), rng.normal(size=B)
        parts = {
            "numbers": numbers,
            "kind": kind[:, None],
            "previous_reward": np.where(reset, 0, reward)[:, None].astype(np.float32),
            "previous_action": carry.action_B,
            "action_mask": mask,
        }
        observation, info = {"numbers": numbers, "kind": kind}, {"action_mask": mask}
        _, carry = agent.act(observation, carry, reset=reset, reward=reward, info=info)
        action, memory = run(parts, reset, memory)
        np.testing.assert_allclose(action, carry.action_B, rtol=1e-4, atol=1e-4)
        for name, part in carry.memory.items():
            np.testing.assert_allclose(memory[name], part.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
        actions |= set(action[:, 0].tolist())
    assert actions == {0, 1, 2, 3}


every_kind = pytest.mark.parametrize(
    "kind", [kind if kind == QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in CONTROLLERS]
)


@every_kind
def test_an_agent_acts_in_onnxruntime_as_here(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    agent = agent_of(kind)
    mneme.export(agent, tmp_path / "agent.onnx")
    check_parity(agent, onnx_step(tmp_path / "agent.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["agent.onnx"]


@every_kind
def test_an_agent_acts_in_a_program_of_torch_export_as_here(kind: str, tmp_path: Path) -> None:
    agent = agent_of(kind, num_layers=2)
    mneme.export(agent, str(tmp_path / "agent.pt2"))
    check_parity(agent, torch_step(tmp_path / "agent.pt2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gru", {"initial_carry": "learned", "layer_norm": True, "num_layers": 2}),
        ("lstm", {"layer_norm": True}),
        ("pseudo_mamba", {"rule": "classic", "query": "state"}),
        ("transformer", {"gate": "gru"}),
    ],
)
def test_other_forms_of_controllers_are_said_in_onnx_too(kind: str, settings: Any, tmp_path: Path) -> None:
    agent = agent_of(kind, **settings)
    mneme.export(agent, tmp_path / "agent.onnx")
    check_parity(agent, onnx_step(tmp_path / "agent.onnx"))


class Unsayable(Controller):
    """For which ONNX has no operator."""

    def __init__(self, input_size: int, settings: Any, horizon: int, generator: Any) -> None:
        super().__init__(input_size, input_size, {"h": (input_size,)}, learn_initial=False)

    def cell(self, x_BD: torch.Tensor, carry: Carry) -> tuple[torch.Tensor, Carry]:
        h_BD = torch.special.bessel_j0(x_BD + carry["h"])
        return h_BD, {"h": h_BD}


class Deciding(Unsayable):
    """Whose code depends on values."""

    def cell(self, x_BD: torch.Tensor, carry: Carry) -> tuple[torch.Tensor, Carry]:
        return (x_BD, carry) if x_BD.sum() > 0 else (-x_BD, carry)


def test_what_cannot_be_exported_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(policy: Policy, name: str) -> str:
        with pytest.raises(ValueError) as refusal:
            export_policy(policy, tmp_path / name)
        assert "\n" not in str(refusal.value)
        assert not list(tmp_path.iterdir())
        return str(refusal.value)

    gru, own, deciding = (agent_of(kind).policy for kind in ("gru", f"{__name__}:Unsayable", f"{__name__}:Deciding"))
    assert "must end in .onnx or .pt2" in refused(gru, "agent.txt")
    assert "is no folder, so agent.onnx cannot be written there" in refused(gru, "none/agent.onnx")
    assert "Deciding cannot be exported, as torch.export cannot follow its cell" in refused(deciding, "agent.pt2")
    assert re.search("Unsayable cannot be said in ONNX .*bessel_j0", refused(own, "agent.onnx"))
    spec = SpaceAdapter(spaces.Dict({"reset": OBSERVED["numbers"]}), spaces.Discrete(2), SpaceSettings(), False).spec
    assert "a part of the observation is named 'reset'" in refused(build_policy(spec, PolicySettings(), 5, 0), "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install mneme-rl[export]; a file that ends in .pt2 needs none" in refused(gru, "agent.onnx")


@pytest.mark.parametrize("file", [5, None, True])
def test_what_is_no_path_is_told(file: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^file is {file}; give the path of what is to be written"):
        mneme.export(tmp_path, file)


def test_the_command_exports_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = mneme.train(
        "delayed_cue", f"checkpoint.root={tmp_path}", "train.total_timesteps=1", "tracking.enabled=false",
        "train.evaluation_episodes=1", local=True, progress=False,
    )  # fmt: skip
    capsys.readouterr()
    assert main(["export", str(run.folder), str(tmp_path / "agent.pt2")]) == 0
    assert "it takes observation, reset, carry.h" in capsys.readouterr().out
    step = torch_step(tmp_path / "agent.pt2")
    observation, carry = np.ones((B, 5), np.float32), {"h": np.zeros((B, 128), np.float32)}
    agent = mneme.load(run.folder)
    expected, after = agent.act(observation)
    action, carry = step({"observation": observation}, np.ones(B, np.bool_), carry)
    np.testing.assert_array_equal(action, expected)
    np.testing.assert_allclose(carry["h"], after.memory["h"].numpy(), atol=1e-5)
