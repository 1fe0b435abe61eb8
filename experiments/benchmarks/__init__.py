"""What is measured by benchmark.py: speed, costs, overheads, and the plain twin it is compared with."""
