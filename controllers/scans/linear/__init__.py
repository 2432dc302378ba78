"""Diagonal linear recurrences over time: scans in PyTorch and Triton."""
