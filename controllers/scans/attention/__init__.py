"""Causal attention over a sliding window."""
