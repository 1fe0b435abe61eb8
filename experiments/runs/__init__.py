"""One training run: its loop, its folder and the files in it."""
