"""What a frozen or fine-tuned encoder is worth: linear probes, fine-tuning, nearest neighbours, post-processing."""
