"""What a frozen or fine-tuned encoder is worth: linear probes, fine-tuning, nearest neighbors, post-processing."""
