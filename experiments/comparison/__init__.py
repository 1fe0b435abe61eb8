"""Grids of runs: arms, cells, the folder, the processes and their display."""
