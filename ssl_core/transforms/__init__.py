"""Augmentations: views of images, each from its own random generator."""
