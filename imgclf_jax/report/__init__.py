"""Reports on finished runs: `python -m imgclf_jax.report --workdir=DIR` writes an HTML page with charts."""
