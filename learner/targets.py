"""What the epochs aim at: the policy and values that count as old, and the returns."""

from dataclasses import replace

import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.learner.anchor import Anchor, anchor_pass
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.losses import normalized
from mneme.learner.optimizer import Optimizer
from mneme.learner.returns import Returns, gae, vtrace
from mneme.learner.reward_scale import RewardScale
from mneme.learner.settings import LearnerSettings
from mneme.learner.staleness import Staleness, measure_staleness
from mneme.learner.whole_batch import WholeBatch
from mneme.learner.windows import pieces
from mneme.rollout_workers.state import State, under

_SCALE = "reward_scale."


class Targets:
    """How they are made of a batch.

    Args:
        policy: what is trained.
        settings: see `LearnerSettings`.
        optimizer: the threads that compute anchors, and the settings as schedules have made them.
        asynchronous, packed: as for `Learner`.
    """

    anchors: bool
    """Whether every batch has an anchor pass."""

    def __init__(
        self, policy: Policy, settings: LearnerSettings, optimizer: Optimizer, *, asynchronous: bool, packed: bool
    ) -> None:
        self._policy, self._settings, self._optimizer = policy, settings, optimizer
        self._off_policy = asynchronous or packed
        # What acted was not rounded as what is trained, so that the first ratio would be that of two precisions.
        stale = self._off_policy or settings.precision == "bf16"
        self.anchors = settings.anchor == "always" or (settings.anchor == "auto" and stale)
        self._reward_scale = RewardScale(settings.gamma, packed) if settings.normalize_rewards else None

    def anchor(self, batch: SequenceBatch, whole: WholeBatch) -> tuple[Anchor | None, Staleness]:
        """The anchor of this rank's batch, if it has any sequences, and the staleness of all ranks'."""
        anchor, staleness = self._own_anchor(batch) if batch.sequences else (None, Staleness.of_nothing())
        every = whole.group.gather(staleness._asdict())
        return anchor, Staleness.joined([Staleness(**of_rank) for of_rank in every])

    def _own_anchor(self, batch: SequenceBatch) -> tuple[Anchor, Staleness]:
        """The anchor and the staleness of a batch, computed for as many sequences at once as a minibatch has, or for
        fewer where their carries are large."""
        chunks = min(batch.sequences, max(self._optimizer.num_threads, self._settings.num_minibatches))
        plan = self._optimizer.settings.plan(batch.length)
        shares = torch.arange(batch.sequences).tensor_split(chunks)
        rows = [group[0].rows for share in shares for group in pieces(self._policy, plan, share, batch.length)]

        def work(rows: Tensor) -> tuple[Anchor, Staleness]:
            part = batch.rows(rows)
            anchor = anchor_pass(self._policy, part)
            return anchor, measure_staleness(self._policy, part, anchor)

        parts = self._optimizer.map(work, rows)
        return Anchor.joined([anchor for anchor, _ in parts]), Staleness.joined([staleness for _, staleness in parts])

    def returns(self, batch: SequenceBatch, whole: WholeBatch, anchor: Anchor | None) -> tuple[SequenceBatch, Returns]:
        """The batch with what counts as old in the epochs, and the returns of the whole batch, of which the advantages
        are normalised before they are weighted; by minibatch, if at all, the epochs do both."""
        if self._reward_scale is not None:
            batch = replace(batch, rewards=self._reward_scale.scaled(batch, whole.gathered))
        returns = Returns(*map(whole.gathered, self._estimated(batch, anchor)))
        if anchor is not None:
            stored = StoredCarries.of(anchor.carries, batch.rewards.device)
            batch = replace(batch, log_probs=anchor.log_probs, values=anchor.values, stored=stored, past=None)
        if self._settings.normalize_advantages == "minibatch":
            return batch, returns
        advantages = returns.advantages
        if self._settings.normalize_advantages == "batch":
            advantages = normalized(advantages, whole.valid)
        return batch, returns._replace(advantages=returns.weights * advantages)

    def _estimated(self, batch: SequenceBatch, anchor: Anchor | None) -> Returns:
        s = self._settings
        final_values = batch.final_values if anchor is None else anchor.final_values
        ends = (final_values, batch.terminated, batch.truncated, batch.valid)
        if anchor is None:
            return gae(batch.rewards, batch.values, *ends, gamma=s.gamma, lam=s.gae_lambda)
        if not self._off_policy:
            return gae(batch.rewards, anchor.values, *ends, gamma=s.gamma, lam=s.gae_lambda)
        return vtrace(
            anchor.log_probs - batch.log_probs, batch.rewards, anchor.values, *ends,
            gamma=s.gamma, lam=s.gae_lambda, rho_clip=s.vtrace_rho, c_clip=s.vtrace_c,
        )  # fmt: skip

    def state(self) -> State:
        """The rewards' scale, where they are normalised."""
        state = self._reward_scale.state() if self._reward_scale is not None else {}
        return {f"{_SCALE}{name}": array for name, array in state.items()}

    def set_state(self, state: State) -> None:
        """Continue exactly where `state()` was taken."""
        if self._reward_scale is not None:
            self._reward_scale.set_state(under(_SCALE, state))
