"""Augmentations: random views of images, each drawn from an explicit generator."""
