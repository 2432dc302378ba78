"""Settings of learning."""

from dataclasses import dataclass, replace
from math import ceil, gcd, inf, sqrt
from typing import TYPE_CHECKING, Literal, NamedTuple

from mneme.controllers import VALUE_BINS, Settings

if TYPE_CHECKING:
    from mneme.controllers import Controller

ScalarLoss = Literal["mse", "huber"]
ValueLoss = Literal["mse", "huber", "two_hot"]
Schedule = Literal["constant", "linear", "cosine"]
Mode = Literal["cached", "truncated", "full", "traces"]
ModeSchedule = Literal["constant", "steps", "plateau", "evaluation_plateau"]
Precision = Literal["float32", "tf32", "bf16"]

_MODES: tuple[Mode, ...] = ("cached", "truncated", "full")


class WindowPlan(NamedTuple):
    """The cutting of a sequence of T steps into windows: the engine sees only this, never a mode."""

    window: int  # steps scanned from one carry, K
    cut_every: int  # steps between gradient cuts in a window; as many as it has if there are none
    burn_in: int  # steps run without gradient before each window but the first
    carry_stride: int  # a carry must be stored before every step that this divides
    chunk: int  # steps of a window whose activations are kept at once; as many as it has if all are
    from_zero: bool = False  # windows start from the initial carry, not from a stored one


@dataclass(frozen=True, kw_only=True)
class LearnerSettings(Settings, section="learner"):
    """PPO over windows of recurrent experience."""

    mode: Mode = "full"
    """Backpropagation through time: cached (none), truncated (over K steps), full (over whole sequences) or traces
    (over whole sequences, and beyond where they begin by traces, for lru, mingru and nbrc with cellular=true)."""
    bptt_length: int = 32
    """Steps between gradient cuts, K, in truncated mode; longer than the sequence means the whole sequence."""
    max_bptt_length: int | None = None
    """Longest K of truncated mode, which then adapts: it starts at bptt_length, doubles while the gradient that reaches
    a window's first carry is above half of that in its middle, and halves again while it is below a tenth. Unset: K
    stays."""
    mode_schedule: ModeSchedule = "constant"
    """Constant: the mode, all the time. Otherwise cached first, then truncated, then full, as far as the mode: the next
    one after a share of the run (steps), or once the return in training (plateau) or in the regular evaluations
    (evaluation_plateau) has stopped rising. Needs carry_source=fresh."""
    mode_switches: tuple[float, ...] | None = None
    """Shares of the run after which the next mode begins (mode_schedule=steps), one less than there are modes. Unset:
    equal parts."""
    mode_patience: int = 20
    """Returns, one an update or an evaluation, whose mean must be above that of as many before, by more than chance
    would have it; where it is not, the next mode begins (mode_schedule=plateau, evaluation_plateau)."""
    carry_source: Literal["fresh", "stored", "zero"] = "fresh"
    """What goes on where gradients are cut: the carry of the current weights (fresh), that of when the experience was
    collected (stored), or the initial one (zero, an ablation)."""
    burn_in: int = 0
    """Steps run without gradient before each window, to refresh its stored carry (truncated mode)."""
    activation_checkpointing: bool = False
    """Keep the activations of 4 sqrt(T) steps at a time and compute the others again, so that sequences of T steps take
    memory in proportion to sqrt(T). Not with stored or zero carries."""
    gradient_accumulation: int = 1
    """Parts of a minibatch that are worked on one after the other; their gradients add up to the minibatch's."""
    num_epochs: int = 4
    """Passes over each batch of sequences."""
    num_minibatches: int = 4
    """Parts into which an epoch's sequences are shuffled, as equal as whole sequences allow; one step for each."""
    learning_rate: float = 3e-3
    """Adam's step size; lr_warmup and lr_schedule may change it over the run."""
    lr_schedule: Schedule = "constant"
    """Learning rate over the run: constant, or down to zero in a line (linear) or along half a cosine (cosine). A run
    that is extended goes on from its last rate."""
    lr_warmup: float = 0.0
    """Share of the run over which the learning rate first rises in a line from zero; lr_schedule comes after it."""
    core_lr_scale: float = 1.0
    """Learning rate of the controller over that of the rest, which recurrent ones may want below 1; 0 trains it not."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Weight of longer returns in generalised advantage estimation; 0 is the one-step error."""
    normalize_advantages: Literal["batch", "minibatch", "none"] = "batch"
    """Shift and scale advantages to mean 0 and standard deviation 1: those of each batch, of each minibatch, or not."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_range: float = 0.2
    """PPO's clip range of the probability ratio."""
    clip_schedule: Schedule = "constant"
    """Clip range over the run: constant, or down to zero as in lr_schedule."""
    dual_clip: float | None = None
    """Bound of the policy loss where the advantage is negative, in advantages; above 1. Unset: none."""
    value_loss: ValueLoss = "mse"
    """Loss of the value: half the squared error (mse), Huber's, which grows in a line beyond an error of 1 (huber), or
    the cross entropy of a distribution over 255 bins, for rewards of unknown scale (two_hot)."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    clip_range_vf: float | None = None
    """Clip range of the change in value; unset: no clipping."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    ent_schedule: Schedule = "constant"
    """Weight of the entropy bonus over the run: constant, or down to zero as in lr_schedule."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    max_nonfinite: int = 10
    """Steps in a row that are skipped because their gradient is not finite; one more ends the run. 0: the first."""
    target_kl: float | None = None
    """Stop the epochs of an update once the mean KL of one of them (kl_minibatches) exceeds this; unset: never."""
    anchor: Literal["auto", "always", "never"] = "auto"
    """Recompute carries, log-probabilities and values under the current weights before the epochs. auto: where
    fragments may be stale, that is in asynchronous service and with rollout.batching=episodes, and with precision=bf16,
    as acting is float32."""
    vtrace_rho: float = 1.0
    """V-trace's clip of the importance weights (asynchronous service, or rollout.batching=episodes)."""
    vtrace_c: float = 1.0
    """V-trace's clip of the trace-cutting weights (asynchronous service, or rollout.batching=episodes)."""
    replicas: int = 1
    """Learner actors that share each update's fragments and sum their gradients; the result depends on it in the last
    bits. No more than rollout.num_workers; only with Ray."""
    num_threads: int | None = None
    """Threads of each replica, in a run of more than seconds processes, among which a minibatch is split on a CPU; the
    result depends on it in the last bits. Unset: one a core of the machine that starts the run, or a share of them
    where replicas are packed onto it or Ray was started there by the run; one at least, four at most. On a GPU always
    one."""
    fidelity_every: int | None = None
    """Compare the gradient with full backpropagation's every so many updates, in the time of two epochs of one thread
    (metrics fidelity/...). Unset: never."""
    device: str = "auto"
    """Device on which to learn: auto (CUDA if there is any, else the CPU), cpu, cuda, cuda:N or mps (Apple's)."""
    precision: Precision = "float32"
    """Rounding of matrix products in learning: none (float32), to TF32 on NVIDIA's GPUs (tf32; elsewhere none), or to
    bfloat16 (bf16). Recurrences, losses, values and gradients stay float32, and so does acting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "bptt_length", "gradient_accumulation", "num_epochs", "num_minibatches", "num_threads")
        self.at_least(1, "fidelity_every", "replicas", "max_bptt_length", "mode_patience")
        self.at_least(0, "burn_in", "vf_coef", "ent_coef", "max_nonfinite", "core_lr_scale")
        for name in ("learning_rate", "max_grad_norm", "clip_range", "vtrace_rho", "vtrace_c"):
            if not 0 < getattr(self, name) < inf:
                raise self.fault(name, "it must be above 0 and finite")
        for name in ("clip_range_vf", "target_kl"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise self.fault(name, "it must be above 0, or unset")
        if self.clip_range_vf is not None and self.value_loss == "two_hot":
            raise self.fault("clip_range_vf", "value_loss=two_hot has no scalar prediction to clip; leave it unset")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise self.fault("dual_clip", "it must be above 1, or unset")
        for name in ("gamma", "gae_lambda", "lr_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise self.fault(name, "it must lie between 0 and 1")
        if self.mode == "truncated" and self.burn_in > self.bptt_length:
            raise self.fault("burn_in", f"use at most one window, bptt_length={self.bptt_length}")
        if self.mode != "truncated" and self.burn_in:
            raise self.fault("burn_in", f"mode={self.mode} has none; burn-in is for truncated mode")
        if self.precision == "bf16" and self.anchor == "never":
            raise self.fault("anchor", "precision=bf16 needs it, as acting is float32; use auto, or precision=float32")
        if self.carry_source != "fresh" and self.activation_checkpointing:
            raise self.fault("activation_checkpointing", "it needs carry_source=fresh; leave it unset, or set that")
        if self.carry_source == "zero" and self.mode == "full":
            raise self.fault("carry_source", "mode=full has no cuts to start afresh at; use fresh, or another mode")
        if self.carry_source != "fresh" and self.mode == "traces":
            raise self.fault("carry_source", "mode=traces goes on from the carries that it has traces of; use fresh")
        if self.replicas > 1 and self.mode == "traces":
            raise self.fault("replicas", "mode=traces keeps every lane's traces in one learner; use 1, or another mode")
        if self.carry_source != "stored" and self.burn_in:
            raise self.fault("burn_in", "it refreshes stored carries; leave it out, or set carry_source=stored")

        self._check_changes()

    def _check_changes(self) -> None:
        """Refuse changes of mode and K that cannot be."""
        scheduled, longest = self.mode_schedule != "constant", self.max_bptt_length
        if (scheduled or longest is not None) and self.carry_source != "fresh":
            name = "mode_schedule" if scheduled else "max_bptt_length"
            raise self.fault(name, "it needs carry_source=fresh, as carries are stored for one plan of windows")
        if scheduled and self.mode in ("cached", "traces"):
            why = f"mode={self.mode} has no mode before it; set mode=truncated or mode=full"
            raise self.fault("mode_schedule", why)
        if self.mode_switches is not None:
            shares, least = self.mode_switches, len(self.modes) - 1
            if self.mode_schedule != "steps":
                raise self.fault("mode_switches", "they belong to mode_schedule=steps; set that, or leave them out")
            if len(shares) != least or list(shares) != sorted(shares) or not all(0 <= share <= 1 for share in shares):
                raise self.fault("mode_switches", f"give {least} from 0 to 1, rising: {' -> '.join(self.modes)}")
        if longest is not None:
            if "truncated" not in self.modes:
                raise self.fault("max_bptt_length", f"mode={self.mode} has no K; set mode=truncated, or mode_schedule")
            if not 2 <= self.bptt_length <= longest:
                raise self.fault("max_bptt_length", f"K starts at bptt_length={self.bptt_length}: from 2, not above it")

    @property
    def value_bins(self) -> int:
        """Outputs of the value head that the value's loss is of."""
        return VALUE_BINS if self.value_loss == "two_hot" else 1

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes of a run, one after the other."""
        return (self.mode,) if self.mode_schedule == "constant" else _MODES[: _MODES.index(self.mode) + 1]

    @property
    def switches(self) -> tuple[float, ...]:
        """Shares of the run after which the second of the modes begins, and the third."""
        n = len(self.modes)
        return self.mode_switches if self.mode_switches is not None else tuple(i / n for i in range(1, n))

    def plan(self, length: int) -> WindowPlan:
        """The plan for cutting sequences of `length` steps; a window longer than the sequence is clamped to it."""
        window = {"cached": 1, "truncated": min(self.bptt_length, length)}.get(self.mode, length)
        if self.carry_source == "fresh":
            chunk = length
            if self.activation_checkpointing:
                chunk = ceil(4 * sqrt(length))
                if window < length:  # chunks end at cuts
                    chunk = max(window, chunk // window * window)
            return WindowPlan(length, window, 0, length, min(chunk, length))
        if self.carry_source == "zero":
            return WindowPlan(window, window, 0, length, window, from_zero=True)
        burn_in = 0 if window == length else self.burn_in
        return WindowPlan(window, window, burn_in, gcd(window, burn_in), window)

    def at(self, mode: Mode, bptt_length: int) -> "LearnerSettings":
        """The same with this mode and this K as if they were the only ones."""
        return replace(
            self, mode=mode, bptt_length=bptt_length, mode_schedule="constant", mode_switches=None, max_bptt_length=None
        )  # fmt: skip

    def stages(self) -> "list[LearnerSettings]":
        """The settings of each of the modes, with the shortest K and the longest."""
        lengths = {self.bptt_length, self.max_bptt_length or self.bptt_length}
        return [self.at(mode, length) for mode in self.modes for length in sorted(lengths)]

    def full(self) -> "LearnerSettings":
        """The same with full backpropagation through time."""
        return replace(self, carry_source="fresh", burn_in=0).at("full", self.bptt_length)

    def check_controller(self, controller: "Controller", kind: str) -> None:
        """Refuse a controller, of this kind, that the mode makes nothing of.

        Raises:
            ValueError: it has no carry for K to adapt to, or none that can have traces.
        """
        if self.max_bptt_length is not None and not controller.initial():
            raise ValueError(
                f"learner.max_bptt_length is {self.max_bptt_length}, but {kind} has no carry through which a gradient "
                f"could go back; leave it out, or choose another kind"
            )
        if self.mode == "traces" and not controller.elementwise():
            raise ValueError(
                f"learner.mode is traces, but the units of {kind} do not go each by itself, so that it has none; "
                f"choose lru, mingru or nbrc with policy.controller.cellular=true, or learner.mode=full"
            )

    def check_batch(self, sequences: int) -> None:
        """Refuse a batch that cannot be split.

        Raises:
            ValueError: a minibatch would hold less than one sequence.
        """
        if sequences < self.num_minibatches:
            raise ValueError(
                f"learner.num_minibatches is {self.num_minibatches} but a batch holds only {sequences} sequences, so "
                f"that a minibatch would be smaller than one sequence; lower learner.num_minibatches or raise "
                f"rollout.num_envs"
            )
