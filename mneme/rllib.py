"""Mneme's controllers in RLlib: a policy as an RLModule of its new API stack, for its own algorithms to train.

Axis letters: T time, B sequences.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from mneme.agent import load_policy
from mneme.configuration.config import parse_config
from mneme.controllers import Policy, PolicyOutput, build_policy
from mneme.controllers.actions.gaussian import mean_log_std
from mneme.rollout_workers import SpaceSettings
from mneme.rollout_workers.spaces import SpaceAdapter


class MnemeRLModule(TorchRLModule, ValueFunctionAPI):
    """A policy of Mneme, whose carry is RLlib's state.

    Its `model_config` has `max_seq_len`, over which RLlib backpropagates, and either of

    - `policy`: its settings, as in a YAML file under `policy`, such as `{"controller": {"kind": "gru"}}`; `horizon`,
      the steps over which to remember (unset: `max_seq_len`); and `seed` (unset: 0);
    - `run`: a Mneme run's folder or one of its checkpoints, whose policy it begins with; with `trust`, what the run
      names is imported, whoever wrote it.

    RLlib's sequences are parts of one episode each, and the first state of an episode is `get_initial_state`, so that
    there is never anything to reset within them. A learned initial carry is not trained, nor is an auxiliary loss.

    Raises:
        ValueError: a setting or a space does not fit; one sentence.
    """

    policy: Policy

    def setup(self) -> None:
        config: Mapping[str, Any] = self.model_config if isinstance(self.model_config, dict) else {}
        if "max_seq_len" not in config:
            raise ValueError("model_config lacks max_seq_len; set it to the steps over which RLlib is to backpropagate")
        observed, acted = self.observation_space, self.action_space
        if observed is None or acted is None:
            raise ValueError("MnemeRLModule has no observation or action space; give it both, or let RLlib find them")
        self._discrete = isinstance(acted, gym.spaces.Discrete) and acted.start == 0
        if not self._discrete and not (isinstance(acted, gym.spaces.Box) and len(acted.shape) == 1):
            raise ValueError(f"the action space is {acted}; MnemeRLModule takes a Discrete from 0 on, or a flat Box")
        loaded = load_policy(Path(config["run"]), config.get("trust", False)) if "run" in config else None
        spaces = loaded.blueprint.config.spaces if loaded else SpaceSettings()
        self._adapter = SpaceAdapter(observed, acted, spaces, masked=False)
        if loaded is None:
            self.policy = _fresh(config, self._adapter)
        elif replace(loaded.policy.spec, value_bins=1) == self._adapter.spec and not spaces.squash:
            self.policy = loaded.policy
        else:
            raise ValueError(
                f"the run {config['run']} was trained on {loaded.policy.spec}, and RLlib shows {self._adapter.spec}; "
                f"train one without spaces.previous_action, spaces.previous_reward, spaces.squash and masks in infos"
            )

    def get_initial_state(self) -> dict[str, np.ndarray]:
        """The carry that an episode begins with, [...] by name."""
        return {name: start[0].detach().cpu().numpy() for name, start in self.policy.initial_carry(1).items()}

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        output = self._scan(batch)
        parameters_TBA = output.parameters_TBA
        said = {
            Columns.ACTION_DIST_INPUTS: self._outwards(
                parameters_TBA if self._discrete else torch.cat(mean_log_std(parameters_TBA), -1)
            ),
            # comes back to `compute_values`, which so needs no scan
            Columns.EMBEDDINGS: self._outwards(output.value_TB),
        }
        return said | ({Columns.STATE_OUT: output.carry} if self.is_stateful() else {})

    def compute_values(self, batch: Mapping[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """The expected discounted return at each step, [B, T]; of a policy without memory [B]."""
        return self._outwards(self._scan(batch).value_TB) if embeddings is None else embeddings

    def _scan(self, batch: Mapping[str, Any]) -> PolicyOutput:
        """The policy over RLlib's batch: observations [B, T, ...] and the state before them [B, ...]; without memory
        observations [B, ...]."""
        first: Tensor = tree.flatten(batch[Columns.OBS])[0]
        B, T = first.shape[:2] if self.is_stateful() else (len(first), 1)
        steps = tree.map_structure(
            lambda x: x.reshape(B * T, *x.shape[1 + self.is_stateful() :]).cpu().numpy(), batch[Columns.OBS]
        )
        free = np.ones(B * T, np.bool_)  # padding allows no action
        parts = self._adapter.observe(steps, {}, self._adapter.no_action(B * T), np.zeros(B * T), free)
        device = next(self.policy.parameters()).device
        observations = {
            name: torch.from_numpy(part).to(device).unflatten(0, (B, T)).transpose(0, 1) for name, part in parts.items()
        }
        reset_TB = torch.zeros(T, B, dtype=torch.bool, device=device)
        return self.policy.scan(observations, reset_TB, dict(batch.get(Columns.STATE_IN, {})))

    def _outwards(self, x: Tensor) -> Tensor:
        """[T, B, ...] as RLlib has it, [B, T, ...]; without memory [B, ...]."""
        return x.transpose(0, 1) if self.is_stateful() else x[0]


def _fresh(config: Mapping[str, Any], adapter: SpaceAdapter) -> Policy:
    settings = parse_config({"policy": config.get("policy", {})}).policy
    if settings.normalize_observations:
        raise ValueError(
            "policy.normalize_observations is set, but RLlib updates no statistics of a module; leave it out, and let "
            "RLlib normalise by its connector MeanStdFilter"
        )
    return build_policy(adapter.spec, settings, config.get("horizon", config["max_seq_len"]), config.get("seed", 0))
