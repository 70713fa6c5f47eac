"""Temporary."""
from imgclf_jax.config import default
def get_config():
    c = default()
    c.data.pixels = "standardized"
    c.data.train_split = "train"
    c.data.valid_split = ""
    c.model.name = "speednet"
    c.model.dtype = "bfloat16"
    c.model.options = dict(pool="global")
    c.init.freeze = ("whiten/kernel",)
    c.augment.crop = (32, 32)
    c.augment.pad = 2
    c.augment.flip = True
    c.augment.flip_mode = "alternating"
    c.augment.sizes = (24, 28, 32)
    c.optim.learning_rate = 0.1
    c.optim.label_smoothing = 0.2
    c.train.batch_size = 2000
    c.train.epochs = 8.0
    c.eval.batch_size = 2000
    c.eval.train = False
    return c
