"""Rules that people use by hand, in forms without labels: controls that learn nothing by gradient."""
