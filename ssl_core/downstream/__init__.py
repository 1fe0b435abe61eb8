"""Classifiers from a pre-trained encoder: linear probes, fine-tuning, nearest neighbors, post-processing."""
