"""Choosing attacks as a Gymnasium problem: the environments that `astra_gym.register` names."""

if __name__ != "astra_gym.envs":
    raise ImportError(f"{__name__} is a part of astra_gym, not a package of its own: import astra_gym.envs")
