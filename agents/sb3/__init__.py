"""Stable-Baselines3's algorithms as agents: settings for few updates, exact saving and resuming."""
