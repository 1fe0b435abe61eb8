"""Convolutions with fixed weights, and the operations around them, by the fastest operators of each device."""
