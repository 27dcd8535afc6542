"""Bad input for every driver: command lines, and files that are made here. `make fuzz` runs all of it."""
