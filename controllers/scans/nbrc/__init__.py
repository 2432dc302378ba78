"""The bistable recurrent cell over time: one step, and scans in PyTorch and numba."""
