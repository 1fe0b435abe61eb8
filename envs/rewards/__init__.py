"""The reward of an attack: a module for each kind of term, the table of terms, and their weighted sum."""
