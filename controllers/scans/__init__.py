"""Recurrences over time that start from any carry and reset anywhere: fast, with hand-derived gradients."""
