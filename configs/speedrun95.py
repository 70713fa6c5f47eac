"""95 % on CIFAR-10: the recipe of airbench95, a wider network in 15 epochs of SGD with lookahead.

    python -m imgclf_jax.main --config=configs/speedrun95.py

The recipe is that of Jordan 2024 (https://arxiv.org/abs/2404.00498), https://github.com/KellerJordan/cifar10-airbench,
legacy/airbench95.py: 720 steps of 1,024 images. The learning rate of the biases of batch normalization is 64 times that
of the rest. It trains on all 50,000 training images without a validation split, and evaluates 6 views of each test
image beside the image alone.

Losses are means here and sums there, so the learning rate is theirs times the batch size. Besides:

- The learning rate of the bias of the first layer falls linearly to 0 in the 3 epochs in which it is trained. There it
  follows the schedule.
- Layers compute in bfloat16 instead of float16, with the parameters in float32.

It has not been run, so there is no accuracy to quote. The author published 95.01 % with the 6 views (200 runs).
"""

import math

from imgclf_jax.config import default

STEPS, RATE = 720, 10.0


def get_config():
    config = default()
    config.data.train_split = "train"
    config.data.valid_split = ""
    config.data.pixels = "standardized"

    config.augment.crop = (32, 32)
    config.augment.pad = 2
    config.augment.flip = True
    config.augment.flip_mode = "alternating"

    config.model.name = "speednet"
    config.model.widths = (128, 384, 384)
    config.model.dtype = "bfloat16"
    config.model.options.depth = 2
    config.model.options.activation = "gelu"
    config.model.options.pool = "window"
    config.model.options.logit_scale = 1 / 9
    config.model.options.head_std = 1 / math.sqrt(3 * config.model.widths[-1])
    config.model.options.whiten_bias = False

    config.init.freeze = ("whiten/kernel",)

    config.optim.name = "sgd"
    config.optim.momentum = 0.85
    # Theirs is for all steps that a gradient has a part in: with Nesterov momentum, 1 + 1 / (1 - momentum) times ours.
    config.optim.learning_rate = RATE / (1 + 1 / (1 - 0.85))
    config.optim.factors = (("*/norm*/bias", 64.0),)
    config.optim.freeze_after = (("whiten/bias", 3.0),)
    config.optim.weight_decay = 0.0153 / RATE
    config.optim.decay_mask = "all"
    config.optim.schedule = "knots"
    config.optim.knots = ((0, 0.2), (int(0.23 * STEPS) / STEPS, 1.0), (1, 0.07))
    config.optim.lookahead_every = 5
    config.optim.lookahead_decay = 0.95**5
    config.optim.lookahead_power = 3.0
    config.optim.label_smoothing = 0.2

    config.train.batch_size = 1024
    config.train.epochs = 15
    config.eval.train = False
    config.eval.tta = "flip_shift"
    config.log.every_steps = 48
    return config
