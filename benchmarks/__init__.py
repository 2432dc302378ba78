"""Benchmarks of Mneme: trained environment steps per second, beside sb3-contrib, RLlib and our own bare loop."""
