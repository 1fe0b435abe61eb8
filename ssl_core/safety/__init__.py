"""What keeps files safe: seals, locks, full disks, and formats that run no code and read as what they say."""
