"""The linear baseline of `configs/elephants_cars.py`: logistic regression on 16×16 pixels.

    python -m imgclf_jax.main --config=configs/elephants_cars_linear.py --config.data.dir=PHOTOS

It shows how easy the photos are: validation accuracy 0.9075 ± 0.0052, test accuracy 0.8805 ± 0.0033 (mean ± standard
deviation, seeds 0 1 2 3 4) in 3.6 to 5.8 s per seed on 2 CPU cores that also ran tests
(`python scripts/reproduce.py --photos=PHOTOS --configs elephants_cars_linear`, 2026-11-22).
"""

from imgclf_jax.config import default


def get_config():
    config = default()
    config.data.source = "folder"
    config.data.image_size = (16, 16)
    config.data.pixels = "standardized"

    config.augment.flip = True

    config.model.name = "softmax"
    config.model.head = "auto"

    config.optim.name = "sgd"
    config.optim.learning_rate = 0.002
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 0.1

    config.train.batch_size = 50
    config.train.epochs = 100
    config.eval.every_epochs = 10
    config.log.every_steps = 80
    return config
