"""Rollouts that never leave the device: environments, policy and what is recorded of them.

Legend: B environments, T steps, F features.
"""

import torch
from torch import Tensor

from benchmarks.on_device.lane_random import lane_noise, words
from benchmarks.on_device.tasks import DeviceTask
from mneme.controllers import Carry, Policy
from mneme.controllers.controller import reset_carry
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.rollout_workers import Collector

OBSERVATION = "observation"  # the only part of one


class DeviceCollector:
    """Collects what a `Collector` would from where it stands, up to rounding; that one is left alone.

    It takes tasks that show one array, not stacked, and whose episodes end by termination, and stores the first carry
    alone. What `collect` gives is overwritten by the next call. Nothing waits for the device while steps are made.

    Args:
        collector: with an environment that has the task's parameters, and a policy of the same shape.
        task: made of the collector's environment.
        policy: what acts, on the task's device.
        graphed: replay the steps as one CUDA graph, which is made the second time.
    """

    def __init__(self, collector: Collector, task: DeviceTask, policy: Policy, graphed: bool = False) -> None:
        state, device = collector.state(), task.device
        assert state is not None
        self._task, self._policy, self._greedy = task, policy, collector.greedy
        assert collector.success_return is not None
        self._success_return = collector.success_return
        self._length, self._taken = collector.length, int(state["step"])
        self._noise_keys = words(collector.blank().seed, device)
        self._lanes = torch.from_numpy(collector.blank().lane).to(device)
        self._reset_B = torch.from_numpy(state["reset"]).to(device)
        self._return_B = torch.from_numpy(state["return"]).to(device)
        self._carry: Carry = {
            name: torch.from_numpy(state[f"carry.{name}"]).to(device) for name in policy.controller.initial()
        }
        T, B = self._length, len(self._lanes)
        features = state[f"observation.{OBSERVATION}"].shape[1]
        self._observations = torch.zeros(T + 1, B, features, device=device)
        self._actions = torch.zeros(T, B, dtype=torch.int64, device=device)
        self._log_probs, self._rewards = torch.zeros(2, T, B, device=device)
        self._values = torch.zeros(T + 1, B, device=device)
        self._terminated = torch.zeros(T, B, dtype=torch.bool, device=device)
        self._resets = torch.zeros(T + 1, B, dtype=torch.bool, device=device)
        self._noise = torch.zeros(T, B, policy.action_distribution.noise_size, device=device)
        self._first_carry = {name: torch.zeros_like(c) for name, c in self._carry.items()}
        self._ended = torch.zeros(2, device=device)  # episodes, and those that succeeded
        self._graphed, self._warm = graphed, False
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def collect(self) -> tuple[SequenceBatch, float]:
        """T steps of every lane, and the share of the episodes that ended in them and succeeded."""
        self._task.prepare(self._length)
        noise_BTN = lane_noise(self._noise_keys, self._taken, self._length, self._noise.shape[2])
        self._noise.copy_(noise_BTN.transpose(0, 1))
        self._replay() if self._graphed else self._steps()
        batch = self._batch()
        self._taken += self._length
        episodes, succeeded = self._ended.tolist()
        return batch, succeeded / max(1.0, episodes)

    def _replay(self) -> None:
        """The steps, the first time as they are, which prepares what a graph must find prepared."""
        if not self._warm:
            self._steps()
            self._warm = True
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # which only notes what is asked for
                self._steps()
            self._graph = graph
        self._graph.replay()

    def _steps(self) -> None:
        self._ended.zero_()
        for name, c in self._carry.items():
            self._first_carry[name].copy_(c)
        carry = self._carry
        for t in range(self._length):
            observation_BF = self._task.observe()
            self._observations[t], self._resets[t] = observation_BF, self._reset_B
            y_BH, carry = self._outputs(observation_BF, carry)
            choice = self._policy.choice(y_BH, {OBSERVATION: observation_BF}, self._noise[t], self._greedy)
            self._actions[t], self._log_probs[t], self._values[t] = choice
            self._rewards[t], self._terminated[t] = self._task.step(self._actions[t])
            self._count(self._rewards[t], self._terminated[t])
            self._reset_B.copy_(self._terminated[t])
        for name, c in carry.items():
            self._carry[name].copy_(c)
        observation_BF = self._task.observe()
        self._observations[-1], self._resets[-1] = observation_BF, self._reset_B
        y_BH, _ = self._outputs(observation_BF, self._carry)
        self._values[-1] = self._policy.heads(y_BH, {OBSERVATION: observation_BF})[1].squeeze(-1)

    def _outputs(self, observation_BF: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """`Controller.step` without looking which lanes are reset."""
        controller = self._policy.controller
        x_BD, carry, _ = self._policy.encoded({OBSERVATION: observation_BF}, self._reset_B, carry)
        return controller.fast_step(x_BD, reset_carry(self._reset_B, controller.initial(), carry))

    def _count(self, reward_B: Tensor, terminated_B: Tensor) -> None:
        self._return_B += reward_B
        succeeded_B = terminated_B & (self._return_B >= self._success_return - 1e-6)
        self._ended += torch.stack([terminated_B.sum(), succeeded_B.sum()])
        self._return_B.masked_fill_(terminated_B, 0.0)

    def _batch(self) -> SequenceBatch:
        def by_lane(x: Tensor) -> Tensor:
            return x.transpose(0, 1)

        device, (T, B) = self._task.device, self._actions.shape
        nothing = torch.zeros(B, T, device=device)
        first_carries = {name: c.unsqueeze(1) for name, c in self._first_carry.items()}
        return SequenceBatch(
            observations={OBSERVATION: by_lane(self._observations)},
            actions=by_lane(self._actions), log_probs=by_lane(self._log_probs), values=by_lane(self._values),
            rewards=by_lane(self._rewards), terminated=by_lane(self._terminated), resets=by_lane(self._resets),
            final_values=nothing, final_observations={OBSERVATION: self._observations[0, :0]},
            final_index=nothing.long(), truncated=nothing.bool(), valid=~nothing.bool(),
            stored=StoredCarries.of(first_carries, device), carry_stride=T, lane=self._lanes,
            first_step=torch.full_like(self._lanes, self._taken), past=None, packed=False,
        )  # fmt: skip
