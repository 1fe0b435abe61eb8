"""Figures of runs and of representations."""
