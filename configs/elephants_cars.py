"""The Keras tutorial on cars and elephants: 400 photos, a small network with a sigmoid, RMSprop, 50 epochs.

python -m imgclf_jax.main --config=configs/elephants_cars.py --config.data.dir=PHOTOS
"""

from imgclf_jax.config import default


def get_config():
    config = default()
    config.data.source = "folder"
    config.data.image_size = (96, 96)

    config.augment.rotation = 15.0
    config.augment.width_shift = 0.1
    config.augment.height_shift = 0.1
    config.augment.shear = 11.5
    config.augment.zoom = (0.8, 1.2)
    config.augment.flip = True
    config.augment.contrast = (0.6, 1.4)
    config.augment.brightness = 0.2
    config.augment.saturation = (0.0, 2.0)

    config.model.name = "small_cnn"
    config.model.head = "sigmoid"

    config.optim.name = "rmsprop"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.momentum = 0.0
    config.optim.b2 = 0.9
    config.optim.eps = 1e-7

    config.train.batch_size = 16
    config.train.epochs = 50
    config.eval.every_epochs = 1
    config.log.every_steps = 25
    return config
