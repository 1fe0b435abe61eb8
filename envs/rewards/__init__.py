"""The reward of an attack: each term in a place of its own, the table of them, and their weighted sum."""
