"""The part of an environment that an agent may use."""
