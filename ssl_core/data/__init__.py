"""Data sets, folders of images, and training batches."""
