"""The agent's network: observation encoders, controller, LayerNorm, and heads for action and value.

Axis letters: T time, B environments or sequences, A action parameters, V outputs of the value head, H hidden.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Size, Tensor, nn

from mneme.controllers.actions import ActionDistribution
from mneme.controllers.controller import Carry
from mneme.controllers.frames import FrameStack
from mneme.controllers.initialisation import linear
from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.mlp import dense
from mneme.controllers.observations import Observation, ObservationEncoder, ObservationPart, Vector
from mneme.controllers.precision import autocast, wide
from mneme.controllers.registry import build_controller
from mneme.controllers.settings import PolicySettings
from mneme.controllers.torch_globals import default_dtype_kept, threads_kept
from mneme.controllers.traces import Traces, no_traces, traced, traces_after
from mneme.controllers.two_hot import expectation

ACTION_MASK, PREVIOUS_ACTION = "action_mask", "previous_action"


@dataclass(frozen=True)
class PolicySpec:
    """The parts of the network that the task determines, and the kind of its values."""

    observations: Mapping[str, ObservationPart]
    """The type of each part of an observation, in the order in which the parts are concatenated."""

    actions: ActionDistribution
    """The family of action distributions."""

    masked: bool = False
    """Observations also carry "action_mask": bool [..., actions.mask_size], true where an action is allowed."""

    previous_action: bool = False
    """Observations also carry "previous_action" in the action's own format; an episode's first is not looked at."""

    stack: int = 1
    """Observations that are read at once: the present one and those before it (`controllers/frames.py`)."""

    value_bins: int = 1
    """Outputs of the value head: the value itself, or the logits of so many bins (`controllers/two_hot.py`)."""

    def __post_init__(self) -> None:
        if not self.observations:
            raise ValueError("the observation has no parts; a policy needs at least one")
        if taken := self.observations.keys() & {ACTION_MASK, PREVIOUS_ACTION}:
            raise ValueError(f"an observation part is named {taken.pop()!r}, which has a meaning of its own; rename it")
        if self.masked and not self.actions.mask_size:
            raise ValueError(f"the actions {self.actions} cannot be masked; leave the action mask out")
        if self.stack < 1:
            raise ValueError(f"stack is {self.stack}; it must be at least 1, which is the present observation alone")
        if self.value_bins < 1 or self.value_bins % 2 == 0:
            raise ValueError(f"value_bins is {self.value_bins}; it must be odd, so that one bin is 0, or 1 for no bins")


class PolicyOutput(NamedTuple):
    """A policy's view of a sequence."""

    parameters_TBA: Tensor  # [T, B, A] parameters of the action distribution, masks applied
    values_TBV: Tensor  # [T, B, V] outputs of the value head: the value, or logits of its bins
    carry: Carry  # after the last step
    signals: dict[str, Tensor]  # what else the controller says, [T, B] a name

    @property
    def value_TB(self) -> Tensor:
        """The expected discounted return, [T, B]."""
        return _scalar(self.values_TBV)


class Act(NamedTuple):
    """One decision a lane."""

    action_B: Tensor  # [B, *action_shape] in the distribution's action_dtype
    log_prob_B: Tensor  # [B] of that action under the policy, in nats
    value_B: Tensor  # [B] expected discounted return
    carry: Carry  # after this step


class Policy(nn.Module):
    """Acting is a step of the scan that is trained, and agrees with it to rounding."""

    def __init__(self, spec: PolicySpec, settings: PolicySettings, horizon: int, generator: Generator) -> None:
        super().__init__()
        self.spec = spec
        self.mixed_precision = False  # products of scans in bfloat16; see `controllers.precision`
        self.action_distribution = spec.actions
        self.observations = ObservationEncoder(spec.observations, settings, generator, spec.stack)
        observed_size = self.observations.output_size + spec.previous_action * spec.actions.feature_size * spec.stack
        self.encoder = dense(observed_size, settings.encoder, generator) if settings.encoder else nn.Identity()
        encoded_size = settings.encoder[-1] if settings.encoder else observed_size
        self.controller = build_controller(settings.controller, encoded_size, horizon, generator)
        hidden = self.controller.output_size
        self.norm = LayerNorm(hidden) if settings.controller.output_norm else nn.Identity()
        self.policy_hidden = dense(hidden, settings.heads, generator)
        self.value_hidden = dense(hidden, settings.heads, generator)
        width = settings.heads[-1] if settings.heads else hidden
        self.policy_head = linear(width, self.action_distribution.parameter_size, 0.01, generator)
        # With bins all weights are zero, so that every value is 0 at first: of random ones the outermost would be huge.
        self.value_head = linear(width, spec.value_bins, 1.0 if spec.value_bins == 1 else 0.0, generator)
        read = {name: part.shape for name, part in spec.observations.items()}
        if spec.previous_action:
            read[PREVIOUS_ACTION] = (spec.actions.feature_size,)
        self._frames = FrameStack(read, spec.stack) if spec.stack > 1 else None
        if self._frames:
            self._frames.refuse_collision(settings.controller.kind, self.controller.initial())
        self._expected = {name: (part.dtypes, part.shape) for name, part in spec.observations.items()}
        first, kind = next(iter(spec.observations.items()))
        plain = len(read) == 1 and isinstance(kind, Vector) and not settings.normalize_observations
        self._as_it_is = first if plain and spec.stack == 1 else None
        if spec.masked:
            self._expected[ACTION_MASK] = ((torch.bool,), (spec.actions.mask_size,))
        if spec.previous_action:
            self._expected[PREVIOUS_ACTION] = ((spec.actions.action_dtype,), spec.actions.action_shape)

    def initial_carry(self, batch: int) -> Carry:
        """The initial carry of `batch` lanes."""
        frames = self._frames.initial(self.value_head.weight.device) if self._frames else {}
        before = {name: start.expand(batch, *start.shape).clone() for name, start in frames.items()}
        return self.controller.initial_carry(batch) | before

    def blank(self, T: int, B: int) -> Observation:
        """An observation of nothing, [T, B, ...] a part, that allows every action."""
        device = self.value_head.weight.device
        parts = {
            name: torch.zeros(T, B, *shape, dtype=dtypes[0], device=device)
            for name, (dtypes, shape) in self._expected.items()
        }
        return {name: ~part if name == ACTION_MASK else part for name, part in parts.items()}

    def scan(
        self, observations: Observation, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> PolicyOutput:
        """Run over [T, B, ...] observations; the rules are those of `Controller.scan`.

        Raises:
            ValueError: an observation's name, shape or dtype, or one of the other arguments, does not fit.
        """
        y_TBH, carry, signals = self.features(observations, reset_TB, carry, cut_TB)
        return PolicyOutput(*self.heads(y_TBH, observations), carry, signals)

    def features(
        self, observations: Observation, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry, dict[str, Tensor]]:
        """`scan` before the heads: the controller's outputs [T, B, H], the carry, and the controller's signals."""
        with autocast(reset_TB.device, enabled=True) if self.mixed_precision else nullcontext():
            x_TBF, core, frames = self._observed(observations, reset_TB, carry)
            x_TBD = wide(self.encoder(x_TBF))
            y_TBH, core, signals = self.controller.scan_with_signals(x_TBD, reset_TB, core, cut_TB)
            return y_TBH, core | frames, signals

    def no_traces(self, lanes: int) -> Traces:
        """The traces of carries that depend on no parameter."""
        return no_traces(self.controller.elementwise(), lanes)

    def traced(self, carry: Carry, traces: Traces) -> Carry:
        """The same carry, whose gradient reaches the parameters by its traces."""
        return traced(self.controller.elementwise(), carry, traces)

    @torch.no_grad()
    def traces_after(self, observations: Observation, reset_TB: Tensor, carry: Carry, traces: Traces) -> Traces:
        """The traces of the carry that `scan` of these arguments leads to, from those of the carry before."""
        x_TBF, core, _ = self._observed(observations, reset_TB, carry)
        runs = self.controller.elementwise_runs(wide(self.encoder(x_TBF)), reset_TB, core)
        return traces_after(self.controller.elementwise(), runs, reset_TB, traces)

    def _observed(self, observations: Observation, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry, Carry]:
        """The inputs of the encoder, [T, B, F], the controller's part of the carry, and the frames after the last
        step."""
        self._check(observations, reset_TB.shape)
        parts = {name: observations[name] for name in self.spec.observations}
        if self.spec.previous_action:
            previous = self.action_distribution.features(observations[PREVIOUS_ACTION])
            parts[PREVIOUS_ACTION] = previous.masked_fill(reset_TB.unsqueeze(-1), 0.0)
        frames: Carry = {}
        if self._frames:
            frames, carry = self._frames.split(carry)
            parts, frames = self._frames.stacked(parts, reset_TB, frames)
        features = self.observations(parts)
        if self.spec.previous_action:
            features.append(parts[PREVIOUS_ACTION].flatten(2))
        return features[0] if len(features) == 1 else torch.cat(features, -1), carry, frames

    def heads(self, y_TBH: Tensor, observations: Observation) -> tuple[Tensor, Tensor]:
        """Parameters of the action distribution [..., A], and the value head's outputs [..., V]; for one step too."""
        normed_TBH = self.norm(y_TBH)
        parameters_TBA = self.policy_head(self.policy_hidden(normed_TBH))
        if self.spec.masked:
            parameters_TBA = self.action_distribution.masked(parameters_TBA, observations[ACTION_MASK])
        return parameters_TBA, self.value_head(self.value_hidden(normed_TBH))

    @torch.no_grad()
    def act(
        self,
        observations: Observation,
        reset_B: Tensor,
        carry: Carry,
        uniform_BN: Tensor,
        greedy: bool = False,
    ) -> Act:
        """Choose one action a lane from noise in [0, 1), or the distribution's mode; without autograd."""
        y_BH, carry = self._stepped(observations, reset_B, carry)
        return Act(*self.choice(y_BH, observations, uniform_BN, greedy), carry)

    def choice(
        self, y_BH: Tensor, observations: Observation, uniform_BN: Tensor, greedy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`Act` without its carry, from the controller's outputs."""
        parameters_BA, values_BV = self.heads(y_BH, observations)
        distribution = self.action_distribution
        action_B = distribution.mode(parameters_BA) if greedy else distribution.sample(parameters_BA, uniform_BN)
        return action_B, distribution.log_prob(parameters_BA, action_B), _scalar(values_BV)

    @torch.no_grad()
    def value(self, observations: Observation, reset_B: Tensor, carry: Carry) -> Tensor:
        """Expected discounted return [B] of observations that are looked at but not acted on."""
        return self.step(observations, reset_B, carry)[1]

    def lacks_statistics(self) -> bool:
        """True if observations are to be normalised and there are no statistics yet: they go in raw, only clipped."""
        return self.observations.lacks_statistics()

    def update_statistics(
        self, observations: Observation, valid_BT: Tensor, stacked: Callable[[Tensor], Tensor] = lambda x: x[None]
    ) -> None:
        """Count [B, T, ...] observations, where `valid_BT` is true, into the statistics that normalise later ones.

        This changes the policy's outputs, so it belongs after an update's last epoch, or before what an update
        compares with is computed. Without `normalize_observations` it does nothing. Where several learners count a
        part each, `stacked` gives the numbers of all of them, [learners, numbers], from those of this one.
        """
        self.observations.update_statistics(observations, valid_BT, stacked)

    def step(self, observations: Observation, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry]:
        """`scan` with T = 1, as in `Controller.step`: parameters [B, A], values [B], and the carry."""
        y_BH, carry = self._stepped(observations, reset_B, carry)
        parameters_BA, values_BV = self.heads(y_BH, observations)
        return parameters_BA, _scalar(values_BV), carry

    def _stepped(self, observations: Observation, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        x_BD, core, frames = self.encoded(observations, reset_B, carry)
        y_BH, core = self.controller.step(x_BD, reset_B, core)
        return y_BH, core | frames

    def encoded(self, observations: Observation, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry, Carry]:
        """The controller's inputs of one step, [B, D], its part of the carry, and the frames for the next step."""
        x_BF, core, frames = self.observed(observations, reset_B, carry)
        return self.encoder(x_BF), core, frames

    def observed(self, observations: Observation, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry, Carry]:
        """`encoded` before the encoder, [B, F]."""
        if self._as_it_is is not None:  # one vector, read as it is: no need for a time axis
            self._check(observations, reset_B.shape)
            return observations[self._as_it_is].to(self.value_head.weight.dtype), carry, {}
        steps = {name: x.unsqueeze(0) for name, x in observations.items()}
        x_TBF, core, frames = self._observed(steps, reset_B.unsqueeze(0), carry)
        return x_TBF[0], core, frames

    def _check(self, observations: Observation, leading: Size) -> None:
        """Compare names, shapes and types only, never values: cheap enough for the step path."""
        if observations.keys() != self._expected.keys():
            raise ValueError(
                f"the observation holds {sorted(observations)}; this policy needs exactly {sorted(self._expected)}"
            )
        for name, (dtypes, shape) in self._expected.items():
            x = observations[name]
            if x.dtype not in dtypes or x.shape != (*leading, *shape):
                raise ValueError(
                    f"observation {name!r} is {x.dtype} of shape {list(x.shape)}; "
                    f"it must be {' or '.join(map(str, dtypes))} of shape {[*leading, *shape]}"
                )


def _scalar(values_V: Tensor) -> Tensor:
    """The value [...] that the value head's outputs [..., V] say."""
    return values_V.squeeze(-1) if values_V.shape[-1] == 1 else expectation(values_V)


def build_policy(spec: PolicySpec, settings: PolicySettings, horizon: int, seed: int) -> Policy:
    """A fresh float32 policy on the CPU; equal arguments give equal bits, whatever the global random state and default
    type, and however many threads torch has.

    `horizon` is the longest time, in steps, over which the task asks to remember.

    Raises:
        ValueError: a size is out of range or the controller is unknown.
    """
    if horizon < 1:
        raise ValueError(f"the horizon is {horizon}; it must be at least 1 step")
    with threads_kept(), default_dtype_kept():
        torch.set_num_threads(1)  # more wait for each other, on a busy machine for long, and change the last bits
        torch.set_default_dtype(torch.float32)
        return Policy(spec, settings, horizon, Generator().manual_seed(seed))
