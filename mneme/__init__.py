"""Reinforcement learning for agents that must remember."""
