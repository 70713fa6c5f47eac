"""What `imgclf_jax.predict` does with files: finding them, reading them ahead of the network, and writing rows."""
