"""Mneme's policies as RLlib's modules: the shapes that RLlib wants, the same decisions as here, and learning."""

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import mneme
from mneme.controllers import CONTROLLERS

pytest.importorskip("ray.rllib")
from ray.rllib.core.columns import Columns

from mneme.rllib import MnemeRLModule

ROOT = Path(__file__).parents[2]
B, T = 3, 5
OBSERVED = spaces.Dict({"numbers": spaces.Box(-1, 1, (2,), np.float32), "kind": spaces.Discrete(3)})


def module_of(action_space: gym.Space[Any], observed: gym.Space[Any] = OBSERVED, **config: Any) -> MnemeRLModule:
    return MnemeRLModule(
        observation_space=observed, action_space=action_space, model_config={"max_seq_len": T} | config
    )


def batch_of(module: MnemeRLModule, steps: int) -> dict[str, Any]:
    stateful, rng = module.is_stateful(), np.random.default_rng(0)
    leading = (B, steps) if stateful else (B,)
    observation = {
        "numbers": torch.from_numpy(rng.normal(size=(*leading, 2)).astype(np.float32)),
        "kind": torch.from_numpy(rng.integers(0, 3, leading)),
    }
    state = {name: torch.from_numpy(np.stack([part] * B)) for name, part in module.get_initial_state().items()}
    return {Columns.OBS: observation} | ({Columns.STATE_IN: state} if stateful else {})


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_training_sees_what_acting_saw_step_by_step(kind: str) -> None:
    controller = {"kind": kind, "hidden_size": 8, "backend": "torch"}
    module = module_of(spaces.Discrete(4), policy={"controller": controller, "heads": [6]})
    stateful = module.is_stateful()
    assert stateful == (kind != "mlp")
    batch = batch_of(module, T)
    trained = module.forward_train(batch)
    values = module.compute_values(batch, embeddings=trained[Columns.EMBEDDINGS])
    assert trained[Columns.ACTION_DIST_INPUTS].shape == ((B, T, 4) if stateful else (B, 4))
    assert values.shape == ((B, T) if stateful else (B,))
    torch.testing.assert_close(values, module.compute_values(batch))
    (trained[Columns.ACTION_DIST_INPUTS].sum() + values.sum()).backward()
    assert all(parameter.grad is not None for parameter in module.policy.policy_head.parameters())
    state = batch.get(Columns.STATE_IN)
    for t in range(T if stateful else 0):
        step = {name: part[:, t : t + 1] for name, part in batch[Columns.OBS].items()}
        acted = module.forward_exploration({Columns.OBS: step, Columns.STATE_IN: state})
        state = acted[Columns.STATE_OUT]
        torch.testing.assert_close(
            acted[Columns.ACTION_DIST_INPUTS][:, 0], trained[Columns.ACTION_DIST_INPUTS][:, t], rtol=1e-4, atol=1e-5
        )
    if state is not None:
        torch.testing.assert_close(state, trained[Columns.STATE_OUT], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stack", [1, 3])
def test_a_run_goes_on_in_rllib_with_its_weights(tmp_path: Path, stack: int) -> None:
    run = mneme.train(
        "delayed_cue", f"spaces.stack={stack}", f"checkpoint.root={tmp_path}", "train.total_timesteps=1",
        "tracking.enabled=false",
        "train.evaluation_episodes=1", local=True, progress=False,
    )  # fmt: skip
    agent = mneme.load(run.folder)
    module = module_of(agent.action_space, agent.observation_space, run=str(run.folder))
    state = {name: torch.from_numpy(part[None]) for name, part in module.get_initial_state().items()}
    carry = None
    for observation in np.random.default_rng(0).normal(size=(T, 5)).astype(np.float32):
        action, carry = agent.act(observation, carry)
        acted = module.forward_inference(
            {Columns.OBS: torch.from_numpy(observation[None, None]), Columns.STATE_IN: state}
        )
        state = acted[Columns.STATE_OUT]
        assert acted[Columns.ACTION_DIST_INPUTS].argmax() == action
        torch.testing.assert_close(state, carry.memory)
    with pytest.raises(ValueError, match=r"the run .* was trained on .*, and RLlib shows"):
        module_of(spaces.Discrete(9), agent.observation_space, run=str(run.folder))


def test_boxes_are_acted_on_by_rllibs_gaussian() -> None:
    module = module_of(spaces.Box(-1, 1, (2,), np.float32))
    said = module.forward_exploration(batch_of(module, 1))
    distribution = module.get_exploration_action_dist_cls().from_logits(said[Columns.ACTION_DIST_INPUTS])
    assert distribution.sample().shape == (B, 1, 2)


@pytest.mark.parametrize(
    ("action_space", "config", "sentence"),
    [
        (
            spaces.Discrete(4, start=1),
            {},
            r"the action space is Discrete\(4, start=1\); MnemeRLModule takes a Discrete",
        ),
        (spaces.Discrete(4), {"policy": {"normalize_observations": True}}, "let RLlib normalise by its connector"),
        (spaces.Discrete(4), {"policy": {"controller": {"kind": "grrr"}}}, "policy.controller"),
    ],
)
def test_what_does_not_fit_is_one_sentence(action_space: gym.Space[Any], config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        module_of(action_space, **config)
    with pytest.raises(ValueError, match="model_config lacks max_seq_len"):
        MnemeRLModule(observation_space=OBSERVED, action_space=spaces.Discrete(4), model_config={})


@pytest.mark.slow
@pytest.mark.ray
def test_rllibs_ppo_learns_to_remember() -> None:
    spec = importlib.util.spec_from_file_location("rllib_ppo", ROOT / "docs" / "examples" / "rllib_ppo.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.train(40) > 0.5
