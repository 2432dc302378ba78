"""Settings that have had another name."""

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "env.vectorization": "env.vectorization_mode",
    "policy.controller.layers": "policy.controller.num_layers",
    "rollout.lanes": "rollout.num_envs",
    "rollout.workers": "rollout.num_workers",
    "rollout.length": "rollout.unroll_length",
    "learner.window": "learner.bptt_length",
    "learner.epochs": "learner.num_epochs",
    "learner.minibatches": "learner.num_minibatches",
    "learner.anneal": "learner.anneal_lr",
    "learner.clip": "learner.clip_range",
    "learner.value_coef": "learner.vf_coef",
    "learner.value_clip": "learner.clip_range_vf",
    "learner.entropy_coef": "learner.ent_coef",
    "learner.shards": "learner.num_threads",
    "train.total_steps": "train.total_timesteps",
}
"""Old key -> new key. An old one is refused, in one sentence that names the new one."""
