"""An external memory of slots: one step, and scans in PyTorch and numba."""
