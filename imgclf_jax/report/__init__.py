"""What a finished run looks like: `python -m imgclf_jax.report --workdir=DIR` writes a page about it, with pictures."""
