"""The selective scan of Mamba: one step, and scans in PyTorch, numba and Triton."""
