"""Basic tools for all other packages: random streams, registries, overrides, files, clocks and provenance."""
