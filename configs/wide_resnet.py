"""WRN-16-4 by the recipe of its authors for CIFAR-10: 200 epochs of SGD, weight decay 5e-4, crop and flip.

    python -m imgclf_jax.main --config=configs/wide_resnet.py

Learning rate 0.1, Nesterov momentum 0.9, batches of 128, no dropout, as in Zagoruyko and Komodakis 2016
(https://arxiv.org/abs/1605.07146). Unlike theirs, the learning rate falls along a cosine instead of three steps, biases
and normalization parameters do not decay, and crops are padded with zeros. It trains on all 50,000 training images
without a validation split.

The full run is meant for an accelerator and has not been run, so there is no accuracy to quote. Shortened runs of a
smaller network reached 0.4717 ± 0.0053 validation accuracy, and 0.4723 ± 0.0089 in PyTorch, after first steps that
agree. The difference, 0.0007, has a standard error of 0.0082. `python scripts/compare_torch.py
--config=configs/wide_resnet.py --options=depth=10,widen=2 --images=5000 --epochs=4 --seeds=3 --rerun_perturbed`, Python
3.13, 2 cores of an Intel Xeon, 2026-11-29.
"""

from imgclf_jax.config import default


def get_config():
    config = default()
    config.data.train_split = "train"
    config.data.valid_split = ""
    config.data.pixels = "standardized"

    config.augment.crop = (32, 32)
    config.augment.pad = 4
    config.augment.pad_mode = "zero"
    config.augment.flip = True

    config.model.name = "wide_resnet"
    config.model.norm = "batch"

    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 5e-4

    config.train.batch_size = 128
    config.train.epochs = 200
    config.checkpoint.every_epochs = 10
    return config
