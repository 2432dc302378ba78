"""State-space duality of Mamba-2: one step, and scans in PyTorch and by mamba_ssm's Triton kernels."""
