"""Networks: the target network with its batch-norm routes, heads, checkpoints, import and export."""
