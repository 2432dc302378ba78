"""A controller of Mneme, trained by RLlib's own PPO: `python docs/examples/rllib_ppo.py`."""

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec

import mneme.envs  # noqa: F401  registers the task
from mneme.rllib import MnemeRLModule


def train(iterations: int, controller: str = "gru", horizon: int = 8) -> float:
    """The mean return of delayed cue in the last iteration; chance is 0.25."""
    steps = horizon + 1  # of an episode
    config = (
        PPOConfig()
        .environment("mneme/DelayedCue-v0", env_config={"horizon": horizon})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16, rollout_fragment_length=4 * steps)
        .training(
            train_batch_size_per_learner=64 * steps, minibatch_size=16 * steps, num_epochs=4, lr=3e-3, gamma=1.0,
            lambda_=0.95, entropy_coeff=0.01, use_kl_loss=False, grad_clip=0.5,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=MnemeRLModule,
                model_config={
                    "policy": {"controller": {"kind": controller, "hidden_size": 64}},
                    "max_seq_len": steps,
                },
            )
        )
        .debugging(seed=0, log_level="ERROR")
    )  # fmt: skip
    algorithm = config.build_algo()
    try:
        for _ in range(iterations):
            result = algorithm.train()
            mean = float(result["env_runners"]["episode_return_mean"])
            print(f"return {mean:.2f}")
        return mean
    finally:
        algorithm.stop()


if __name__ == "__main__":
    train(40)
