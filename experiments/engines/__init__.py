"""Where the cells of a comparison run: on this machine, or on the machines of a cluster."""
