"""The LSTM over time: one step, and scans in PyTorch, numba and Triton."""
