"""Sweeps: many runs over a space of settings, by Ray Tune, each in a folder of its own."""
