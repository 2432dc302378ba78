"""Suggestions for a setting that does not exist."""

import difflib
from collections.abc import Iterable, Mapping

OTHER_NAMES: Mapping[str, str] = {
    "seed": "random_seed",
    "env.id": "env_id env_name task env.name",
    "env.kwargs": "env_kwargs",
    "env.vectorization_mode": "vectorization",
    "env.max_episode_steps": "time_limit max_steps",
    "spaces.keys": "obs_keys",
    "spaces.stack": "frame_stack framestack num_stack n_stack num_frames stack_size",
    "policy.encoder": "net_arch fcnet_hiddens",
    "policy.heads": "post_fcnet_hiddens head_layers",
    "policy.normalize_observations": "norm_obs normalize_obs",
    "policy.controller.kind": "controller model cell rnn rnn_type core",
    "policy.controller.hidden_size": "hidden hidden_dim hidden_units lstm_hidden_size lstm_cell_size d_model",
    "policy.controller.num_layers": "layers n_layers n_lstm_layers",
    "policy.controller.layer_norm": "cell_norm layernorm",
    "policy.controller.d_state": "state_size ssm_state_size",
    "policy.controller.d_conv": "convolution conv_kernel",
    "policy.controller.headdim": "head_size head_dim",
    "policy.controller.chunk_size": "chunk",
    "policy.controller.num_slots": "slots",
    "policy.controller.num_heads": "n_heads n_head",
    "policy.controller.window_size": "window sliding_window context_length",
    "rollout.num_envs": "lanes n_envs nenvs envs batch_size train_batch_size",
    "rollout.num_workers": "workers n_workers num_env_runners num_rollout_workers actors",
    "rollout.unroll_length": "n_steps num_steps seq_len max_seq_len sequence_length rollout_fragment_length",
    "learner.mode": "bptt",
    "learner.bptt_length": "window bptt bptt_steps truncation window_length burn_in_steps",
    "learner.burn_in": "burnin burn_in_steps",
    "learner.num_epochs": "epochs n_epochs update_epochs ppo_epochs num_sgd_iter",
    "learner.num_minibatches": "minibatches batch_size minibatch_size n_minibatches sgd_minibatch_size",
    "learner.learning_rate": "lr alpha step_size",
    "learner.lr_schedule": "anneal anneal_lr lr_decay lr_scheduler",
    "learner.lr_warmup": "warmup warmup_ratio lr_warmup_ratio",
    "learner.gamma": "discount discount_factor",
    "learner.gae_lambda": "lambda lam gae",
    "learner.normalize_advantages": "norm_adv normalize_advantage",
    "learner.normalize_rewards": "norm_reward norm_rewards",
    "learner.clip_range": "clip clip_coef clip_param clip_epsilon",
    "learner.vf_coef": "value_coef vf_loss_coeff value_loss_coef",
    "learner.clip_range_vf": "value_clip clip_vloss vf_clip_param",
    "learner.ent_coef": "entropy_coef entropy_coeff entropy",
    "learner.max_grad_norm": "grad_clip grad_norm clip_grad clip_grad_norm gradient_clip",
    "learner.target_kl": "kl_target",
    "learner.replicas": "num_learners num_learner_workers num_gpu_learners world_size",
    "learner.num_threads": "shards threads n_threads",
    "train.total_timesteps": "total_steps timesteps steps max_steps",
    "train.start_from": "from init_from load_from warm_start trained_agent pretrained restore initial_weights",
    "train.start_part": "from_part",
    "train.evaluate_every": "eval_freq eval_every",
    "train.evaluation_episodes": "eval_episodes n_eval_episodes",
    "service.learner_gpus": "gpus num_gpus num_gpus_per_learner",
    "checkpoint.every": "save_freq save_every",
    "checkpoint.root": "log_dir logdir output_dir",
}
"""The names that other libraries, and people, have for our settings, and our own former names."""

_CLOSE = 0.75


def suggestions(key: str, known: Iterable[str]) -> list[str]:
    """The settings among `known` that `key`, dotted, most probably means; the likeliest first, none if nothing is near.

    The same name in other letters or in another section comes first, then what other libraries call it, then what is
    spelt alike in the same section; then what the task itself may take, and at last what is spelt alike anywhere.
    """
    known, key = list(known), key.replace("-", "_").lower()
    section, _, leaf = key.rpartition(".")
    own = [f"env.kwargs.{leaf}"] if section == "env" else []
    if called := _called(key):
        return called
    if named := [setting for setting in known if _leaf(setting) == leaf]:
        return sorted(named, key=lambda setting: -_likeness(setting, key)) + own
    if called := _called(leaf):
        return called
    within = [setting for setting in known if setting.rpartition(".")[0] == section]
    return _alike(leaf, within) or own or _alike(leaf, known)


def _called(name: str) -> list[str]:
    return [setting for setting, names in OTHER_NAMES.items() if name in names.split()]


def _alike(leaf: str, settings: Iterable[str]) -> list[str]:
    leaves = {_leaf(setting): setting for setting in settings}
    return [leaves[near] for near in difflib.get_close_matches(leaf, leaves, n=1, cutoff=_CLOSE)]


def _leaf(setting: str) -> str:
    return setting.rpartition(".")[2]


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
