"""The measurements of benchmark.py: speed, costs, overheads, and the plain twin for comparison."""
