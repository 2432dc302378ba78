"""The causal convolution of the Mamba family over time: one step, and scans in PyTorch and numba."""
