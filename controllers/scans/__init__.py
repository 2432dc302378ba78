"""Recurrences over time that start from any carry and reset anywhere: fast, with hand-derived gradients.

The plain names (gru, lstm, linear, selective, ssd, slots, attention, convolution, gated_norm, cell_norm) say what one
step computes and scan in PyTorch; compiled_* are for CPUs, triton_* and mamba_ssm_ssd for GPUs. The rest is shared:
backends chooses, resets and blocks cut up time, tiles and compiled_product keep to a core's registers, weight_gradients
sums up what all steps share.
"""
