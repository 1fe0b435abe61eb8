"""One training run: its loop, its folder and what is written into it."""
