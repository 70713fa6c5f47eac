"""Comparison of groups of runs: statistics and tables."""
