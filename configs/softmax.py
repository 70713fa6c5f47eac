"""The published softmax tutorial: logistic regression on pixels, 1000 steps of SGD.

    python -m imgclf_jax.main --config=configs/softmax.py

Zero initialization, batches of 100 drawn with replacement, learning rate 0.005, pixels 0 to 255 minus the mean image of
the training split, training accuracy every 100 steps. The tutorial published 25 to 31 % and took 12.4 s. The learning
rate is far too high for this range of pixel values, so the accuracy depends on where the last steps happen to land.

Test accuracy 0.2825 ± 0.0177 (mean ± standard deviation, seeds 0 1 2) in 2.8 to 5.6 s from command to result on 2 CPU
cores; the first run includes compilation (2026-11-22).
"""

from imgclf_jax.config import default


def get_config():
    config = default()
    config.data.pixels = "mean_image"

    config.model.name = "softmax"

    config.optim.name = "sgd"
    config.optim.learning_rate = 0.005
    config.optim.momentum = 0.0

    config.train.batch_size = 100
    config.train.steps = 1000
    config.train.sampling = "replacement"
    config.log.every_steps = 100
    config.log.line_seconds = 0.0
    return config
