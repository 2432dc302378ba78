"""Recurrences over time that start from any state and may be reset at any step, with gradients derived by hand.

There is one folder for each operation:

    gru, lstm       gated recurrent units
    nbrc            bistable recurrent cells
    linear          h[t] = a[t] h[t-1] + b[t], each channel on its own: lru and mingru
    selective       the state space of Mamba
    ssd             the state space of Mamba-2
    slots           an external memory, read by content
    convolution     the causal convolution before the state space of both Mambas
    gated_norm      the norm after that of Mamba-2, which is no recurrence

In a folder, `cell` is one step as the equations have it, the reference for everything else. `torch`, `numba` (CPUs),
`triton` and `mamba_ssm` (GPUs) are implementations of the scan over all steps; `scan` is the function that controllers
call, and the one place that chooses among them. `backends` says which of them runs on a device. `step` is a step of the
whole layer, compiled for acting.

What has one implementation only is a file: attention, cell_norm (GRU and LSTM with norms).
The others are shared: blocks and resets by all scans, weight_gradients by gru, lstm and nbrc, back_in_time (torch) and
one_state (numba) by gru and nbrc, layer_step by compiled steps, machine_code and products by all in numba, persistent
by those in Triton. In rows are the compiled layers around a recurrence that have each row to themselves.
"""
