"""Collecting experience: vectorised environments and a policy in, trajectory fragments out. Knows nothing of Ray."""

from mneme.rollout_workers.collector import Collector
from mneme.rollout_workers.double_buffered import DoubleBuffered
from mneme.rollout_workers.episodes import EpisodeStats
from mneme.rollout_workers.evaluation import Evaluation, EvaluationError, evaluate
from mneme.rollout_workers.fragment import Fragment, FragmentError
from mneme.rollout_workers.packer import Packer, stride_to_collect
from mneme.rollout_workers.settings import RolloutSettings, SpaceSettings
from mneme.rollout_workers.spaces import adapter_of, policy_spec

__all__ = [
    "Collector",
    "DoubleBuffered",
    "EpisodeStats",
    "Evaluation",
    "EvaluationError",
    "Fragment",
    "FragmentError",
    "Packer",
    "RolloutSettings",
    "SpaceSettings",
    "adapter_of",
    "evaluate",
    "policy_spec",
    "stride_to_collect",
]
