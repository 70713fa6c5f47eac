"""The command-line interface: flags, config files, progress, output files and interrupts. Does not import JAX."""
