"""Attacks on images (PGD with a budget per image) and on weights."""
