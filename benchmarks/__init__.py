"""Benchmarks of Mneme: trained environment steps per second, beside sb3-contrib, RLlib, JAX and our own bare loop."""
