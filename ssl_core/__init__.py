"""Self-supervised adversarial training in plain torch: data, views, losses, attacks, networks, methods, evaluation."""
