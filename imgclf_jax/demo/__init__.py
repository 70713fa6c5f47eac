"""A page on this machine that tries a trained network on photos: `python -m imgclf_jax.demo --workdir=DIR`."""
