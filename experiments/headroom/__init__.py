"""Measure what choosing attacks could gain over a constant attack, before anything learns to choose."""
