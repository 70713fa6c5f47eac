"""What a run leaves in its folder and reads back: config, record, metrics files, checkpoints, provenance."""
