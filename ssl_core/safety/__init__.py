"""Safety of files: seals, locks, full disks, and formats that run no code and are read unambiguously."""
