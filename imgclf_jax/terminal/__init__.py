"""What a person types and sees: flags, config files, progress, output files and interrupts. Imports no JAX."""
