"""Accuracy under attacks and shifts, sanity checks of the results, and the health of representations."""
