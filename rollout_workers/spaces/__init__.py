"""Any Gymnasium spaces, made into what policies know."""

from rollout_workers.spaces.adapter import Parts, SpaceAdapter, policy_spec

__all__ = ["Parts", "SpaceAdapter", "policy_spec"]
