"""What an agent may know of an environment, and nothing else."""
