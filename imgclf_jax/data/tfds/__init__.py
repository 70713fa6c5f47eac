"""Data sets in the layout of TFDS: found or prepared without TensorFlow, decoded once, or read image by image."""
