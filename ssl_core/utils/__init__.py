"""What every other package stands on: random streams, registries, overrides, files, clocks and provenance."""
