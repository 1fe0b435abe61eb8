"""The settings of a run: the record, the command line, presets and recipes."""
