"""Layers of a residual block that have each row to themselves, compiled for CPUs."""
