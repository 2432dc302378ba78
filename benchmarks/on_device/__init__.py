"""Tasks and collecting in torch, for environments that live on the learner's device: same draws, same trajectories."""
