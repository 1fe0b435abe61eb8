"""A whole training as an episode: its instances and its environment."""
