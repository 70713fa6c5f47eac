"""96 % on CIFAR-10: the recipe of airbench96, a deeper and wider network in 37 epochs with cutout.

    python -m imgclf_jax.main --config=configs/speedrun96.py

The recipe is that of Jordan 2024 (https://arxiv.org/abs/2404.00498), https://github.com/KellerJordan/cifar10-airbench,
legacy/airbench96.py: 1,776 steps of 1,024 images, three convolutions in a group and a shortcut over two of them. The
learning rate of the biases of batch normalization is 64 times that of the rest. It trains on all 50,000 training images
without a validation split, and evaluates 6 views of each test image beside the image alone.

Losses are means here and sums there, so the learning rate is theirs times the batch size. Besides:

- The square of cutout is black and may reach over the border. There it has the mean color and lies within the image.
- The learning rate of the bias of the first layer falls linearly to 0 in the 3 epochs in which it is trained. There it
  follows the schedule.
- Layers compute in bfloat16 instead of float16, with the parameters in float32.

It has not been run, so there is no accuracy to quote. The author published 96.03 % with the 6 views (400 runs).
"""

import math

from imgclf_jax.config import default

STEPS, RATE = 1776, 9.0


def get_config():
    config = default()
    config.data.train_split = "train"
    config.data.valid_split = ""
    config.data.pixels = "standardized"

    config.augment.crop = (32, 32)
    config.augment.pad = 4
    config.augment.flip = True
    config.augment.flip_mode = "alternating"
    config.augment.cutout = 12

    config.model.name = "speednet"
    config.model.widths = (128, 384, 512)
    config.model.dtype = "bfloat16"
    config.model.options.depth = 3
    config.model.options.activation = "gelu"
    config.model.options.pool = "window"
    config.model.options.logit_scale = 1 / 9
    config.model.options.head_std = 1 / math.sqrt(3 * config.model.widths[-1])
    config.model.options.whiten_bias = False
    config.model.options.norm_momentum = 0.9

    config.init.freeze = ("whiten/kernel",)

    config.optim.name = "sgd"
    config.optim.momentum = 0.85
    # Theirs is for all steps that a gradient has a part in: with Nesterov momentum, 1 + 1 / (1 - momentum) times ours.
    config.optim.learning_rate = RATE / (1 + 1 / (1 - 0.85))
    config.optim.factors = (("*/norm*/bias", 64.0),)
    config.optim.freeze_after = (("whiten/bias", 3.0),)
    config.optim.weight_decay = 0.012 / RATE
    config.optim.decay_mask = "all"
    config.optim.schedule = "knots"
    config.optim.knots = ((0, 0.2), (int(0.1 * STEPS) / STEPS, 1.0), (1, 0.0))
    config.optim.lookahead_every = 5
    config.optim.lookahead_decay = 0.95**5
    config.optim.lookahead_power = 3.0
    config.optim.label_smoothing = 0.2

    config.train.batch_size = 1024
    config.train.epochs = 37
    config.eval.train = False
    config.eval.tta = "flip_shift"
    config.log.every_steps = 48
    return config
