"""`--profile`: a trace of a few training steps, and a table of their slowest operations."""
