"""Names of metrics in MLflow, whose pages draw one section for what stands before a slash, sections and charts by name.

The names are chosen so that what a run is for comes first: agent, evaluation, learning, memory, service, speed, system,
task. What has no group stays as it is. metrics.jsonl has the names of docs/metrics.md.
"""

from mneme.reporting.tracking.names import clean_name

_BY_KEY = {
    "agent": ("return", "success"),
    "learning": (
        "policy_loss", "entropy", "kl", "kl_minibatches", "clip_fraction", "effective_sample_size", "ratio_error",
        "epochs", "value_loss", "value_mean", "explained_variance", "grad_norm", "nonfinite_steps", "learning_rate",
        "padding", "clip_range", "ent_coef", "auxiliary_loss",
    ),
    "memory": ("bptt_length", "carry_gradient", "traces_missing", "lag", "lag_max", "staleness", "staleness_kl"),
    "service": (
        "weights_version", "workers", "worker_restarts", "learner_restarts", "fragments_refused", "fragments_dropped",
        "replay_bytes",
    ),
    "speed": ("steps_per_second",),
    "task": ("episode_length", "episodes", "environment_failures"),
}  # fmt: skip
_BY_FAMILY = {
    "learning": ("backend",),
    "memory": ("fidelity", "lag", "signal", "staleness", "staleness_kl"),
    "service": ("steps",),
    "speed": ("seconds", "wait"),
    "task": ("curriculum", "info"),
}
_GROUPS = {key: group for group, keys in _BY_KEY.items() for key in keys}
_GROUPS |= {f"{family}/": group for group, families in _BY_FAMILY.items() for family in families}
_LOOKS = {"evaluation": "", "confirmation": ".confirmation", "probe": ".probe"}
_COUNTS = ("episodes", "distinct_episodes", "episode_length")
"""Of an evaluation: about the task, so that its section has what the agent achieves."""


def stored_name(key: str) -> str:
    """The name in MLflow of a metric of a run.

    >>> stored_name("return"), stored_name("seconds/env"), stored_name("confirmation/success")
    ('agent/return', 'speed/seconds.env', 'evaluation/success.confirmation')
    """
    family, slash, rest = key.partition("/")
    if slash and family in _LOOKS:
        if rest in _COUNTS:
            return f"task/{rest}.{family}"
        return f"evaluation/{clean_name(rest)}{_LOOKS[family]}"
    group = _GROUPS.get(f"{family}/" if slash else key)
    name = clean_name(key)
    return name if group is None else f"{group}/{name.replace('/', '.')}"
