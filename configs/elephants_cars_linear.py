"""The linear baseline of `configs/elephants_cars.py`: logistic regression on 16×16 pixels.

python -m imgclf_jax.main --config=configs/elephants_cars_linear.py --config.data.dir=PHOTOS
"""

from imgclf_jax.config import default


def get_config():
    config = default()
    config.data.source = "folder"
    config.data.image_size = (16, 16)
    config.data.pixels = "standardized"

    config.augment.flip = True

    config.model.name = "softmax"
    config.model.head = "sigmoid"

    config.optim.name = "sgd"
    config.optim.learning_rate = 0.002
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 0.1

    config.train.batch_size = 50
    config.train.epochs = 100
    config.eval.every_epochs = 10
    config.log.every_steps = 80
    return config
