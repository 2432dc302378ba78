"""Mamba-2's gated norm, in PyTorch and numba."""
