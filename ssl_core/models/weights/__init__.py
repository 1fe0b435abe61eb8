"""Weights that a network starts from: read from a file, copied into the network, and reported."""
