"""Meshes, sharding, strategies, processes and the settings of XLA: where arrays live and functions run."""
