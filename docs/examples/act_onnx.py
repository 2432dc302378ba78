"""What `mneme export runs/NAME agent.onnx` wrote, without torch: `python docs/examples/act_onnx.py agent.onnx`."""

import sys

import gymnasium
import numpy as np
import onnxruntime

import mneme.envs  # noqa: F401  the task is Mneme's; the agent needs nothing of it


def play(file: str, episodes: int = 5) -> float:
    """The mean return of episodes of delayed cue, one environment played by hand."""
    step = onnxruntime.InferenceSession(file)
    carry = {
        part.name: np.zeros([1, *part.shape[1:]], np.float32) for part in step.get_inputs() if "carry." in part.name
    }
    env = gymnasium.make("mneme/DelayedCue-v0")
    total = 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        begins, ended = True, False
        while not ended:
            inputs = {"observation": observation[None], "reset": np.array([begins]), **carry}
            action, _, *after = step.run(None, inputs)
            carry = dict(zip(carry, after, strict=True))
            observation, reward, terminated, truncated, _ = env.step(action[0])
            total += float(reward)
            begins, ended = False, terminated or truncated
    return total / episodes


if __name__ == "__main__":
    print(f"mean return {play(sys.argv[1]):.2f}")
