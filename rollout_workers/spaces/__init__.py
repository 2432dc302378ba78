"""Any Gymnasium spaces, made into what policies know."""

from mneme.rollout_workers.spaces.adapter import Parts, SpaceAdapter, adapter_of, policy_spec
from mneme.rollout_workers.spaces.leaves import leaves_of, nested
from mneme.rollout_workers.spaces.observations import PREVIOUS_REWARD

__all__ = ["PREVIOUS_REWARD", "Parts", "SpaceAdapter", "adapter_of", "leaves_of", "nested", "policy_spec"]
