"""Convolutions of fixed weights, and what surrounds them, by the fastest operators of each device."""
