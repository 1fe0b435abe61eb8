"""One training on many processes: what they tell each other, and how they share the work of a network."""
