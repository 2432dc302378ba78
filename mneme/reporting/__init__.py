"""What people see of a run: the terminal, the run's own files, MLflow, pictures."""
