"""A trained agent in a loop of one's own: `python docs/examples/act.py runs/NAME`."""

import sys

import gymnasium

import mneme


def play(run: str, episodes: int = 5) -> float:
    """The mean return of episodes of delayed cue, one environment played by hand."""
    agent = mneme.load(run)
    session = agent.session()
    env = gymnasium.make("mneme/DelayedCue-v0")
    total = 0.0
    for seed in range(episodes):
        action = session.reset(*env.reset(seed=seed))
        ended = False
        while not ended:
            observation, reward, terminated, truncated, info = env.step(action)
            action = session.predict(observation, reward, terminated, truncated, info)
            total += float(reward)
            ended = terminated or truncated
    return total / episodes


if __name__ == "__main__":
    print(f"mean return {play(sys.argv[1]):.2f}")
