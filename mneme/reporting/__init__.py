"""The output of a run for people: the terminal, the run's own files, MLflow, pictures."""
