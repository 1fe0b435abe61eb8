"""Accuracy under attacks and shifts, the checks that make it believable, and the health of representations."""
