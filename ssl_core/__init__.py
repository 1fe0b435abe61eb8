"""Self-supervised adversarial training in plain torch: data, views, losses, attacks, networks, methods, evaluation."""

if __name__ != "astra_gym.ssl_core":
    raise ImportError(f"{__name__} is a part of astra_gym, not a package of its own: import astra_gym.ssl_core")
