"""Self-supervised losses as pure functions of embeddings."""
