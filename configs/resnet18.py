"""ResNet-18 with the stem for small images, by the common recipe for CIFAR-10: 200 epochs of SGD, crop and flip.

    python -m imgclf_jax.main --config=configs/resnet18.py

Learning rate 0.1 falling along a cosine, Nesterov momentum 0.9, batches of 128, weight decay 5e-4 on the kernels,
random crops of 32×32 after padding with 4 zeros, and mirroring. It trains on all 50,000 training images without a
validation split.

The full run is meant for an accelerator and has not been run, so there is no accuracy to quote. Its check
(`--mode=check`) counts 11,173,962 parameters. Shortened runs of a narrower network reached 0.4695 ± 0.0045 validation
accuracy, and 0.4767 ± 0.0121 in PyTorch, after first steps that agree. The difference, 0.0072, has a standard error of
0.0084. A start that is changed by one part in a million gives 0.4725 ± 0.0083. `python scripts/compare_torch.py
--config=configs/resnet18.py --options=width=16 --images=5000 --epochs=4 --seeds=3 --rerun_perturbed`, Python 3.13, 2
cores of an Intel Xeon, 2026-11-29.
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

    config.model.name = "resnet18"
    config.model.norm = "batch"

    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 5e-4

    config.train.batch_size = 128
    config.train.epochs = 200
    config.checkpoint.every_epochs = 10
    return config
