"""Any Gymnasium spaces, made into what policies know."""

from rollout_workers.spaces.adapter import Parts, SpaceAdapter, adapter_of, policy_spec

__all__ = ["Parts", "SpaceAdapter", "adapter_of", "policy_spec"]
