"""Settings that have had another name.

An old one that somebody writes is refused, in one sentence that names the new one. What a checkpoint has recorded,
where nobody can mend it, is read under the new names, and what could not be chosen then as it was.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

_KWARGS = {
    "cell_norm": "layer_norm",
    "state_size": "d_state",
    "max_phase": "max_phase",
    "expand": "expand",
    "convolution": "d_conv",
    "head_size": "headdim",
    "chunk": "chunk_size",
    "slots": "num_slots",
    "slot_size": "slot_size",
    "rule": "rule",
    "query": "query",
    "decay": "decay",
    "gate_coef": "gate_coef",
    "window": "window_size",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "gate": "gate",
}
"""Former keyword arguments of our own kinds of controllers, and the settings that replace them."""

RENAMED: Mapping[str, str] = {
    "env.vectorization": "env.vectorization_mode",
    **{f"policy.controller.kwargs.{old}": f"policy.controller.{new}" for old, new in _KWARGS.items()},
    "policy.controller.layers": "policy.controller.num_layers",
    "rollout.lanes": "rollout.num_envs",
    "rollout.workers": "rollout.num_workers",
    "rollout.length": "rollout.unroll_length",
    "learner.window": "learner.bptt_length",
    "learner.epochs": "learner.num_epochs",
    "learner.minibatches": "learner.num_minibatches",
    "learner.anneal": "learner.lr_schedule",
    "learner.anneal_lr": "learner.lr_schedule",
    "learner.clip": "learner.clip_range",
    "learner.value_coef": "learner.vf_coef",
    "learner.value_clip": "learner.clip_range_vf",
    "learner.entropy_coef": "learner.ent_coef",
    "learner.shards": "learner.num_threads",
    "train.total_steps": "train.total_timesteps",
}
"""Old key -> new key."""

_VALUES: Mapping[str, Mapping[Any, Any]] = {
    "learner.anneal": {True: "linear", False: "constant"},
    "learner.anneal_lr": {True: "linear", False: "constant"},
    "learner.normalize_advantages": {True: "batch", False: "none"},
}
"""Key -> old value -> new value, where they differ."""


def new_name(old: str) -> str:
    """A sentence about an old name of a setting."""
    values = ", ".join(f"{new} for {str(value).lower()}" for value, new in _VALUES.get(old, {}).items())
    return f"{old} is now {RENAMED[old]}{values and f': {values}'}"


def under_new_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded tree of settings, each under its present name; one that has no old names comes back as it is."""
    tree = deepcopy(dict(recorded))
    controller = _section(tree, "policy.controller")
    own = ":" in str(controller.get("kind"))
    for old, new in RENAMED.items():
        (section, _, name), (target, _, new_leaf) = old.rpartition("."), new.rpartition(".")
        holder = _section(tree, section)
        if name in holder and not (own and section.endswith(".kwargs")):
            value = holder.pop(name)
            _section(tree, target)[new_leaf] = _VALUES.get(old, {}).get(value, value)
    for key in _VALUES.keys() - RENAMED.keys():
        section, _, name = key.rpartition(".")
        if type(value := _section(tree, section).get(name)) is bool:
            _section(tree, section)[name] = _VALUES[key][value]
    if not own and controller.get("kwargs") == {}:
        del controller["kwargs"]
    if (learner := _section(tree, "learner")).get("mode") in ("cached", "truncated"):
        learner.setdefault("carry_source", "stored")
    return tree


def _section(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The section of a tree at a dotted key, or an empty one if there is none."""
    found: Any = tree
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
