"""ViT-Ti with 4×4 patches on CIFAR-10 from scratch: 200 epochs of AdamW with warm-up, cosine, crop and flip.

    python -m imgclf_jax.main --config=configs/vit.py

Width 192, 12 blocks of 3 heads, a class token, learning rate 1e-3 after 10 epochs of warm-up, weight decay 0.05, label
smoothing 0.1, gradients clipped to norm 1. Without mixing or a strong augmentation, a transformer of this kind falls
behind a ResNet on 50,000 images. It trains on all of them without a validation split.

The full run is meant for an accelerator and has not been run, so there is no accuracy to quote. A shortened
run of a smaller network, beside the same one in PyTorch, had its losses and accuracies to four digits in each of 4
epochs: `python scripts/compare_torch.py --config=configs/vit.py --options=depth=6,width=96 --images=5000 --epochs=4`,
0.3350 validation accuracy on both sides (1 seed, Python 3.13, 2 cores of an Intel Xeon, 2026-11-29).
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

    config.model.name = "vit"

    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 10
    config.optim.weight_decay = 0.05
    config.optim.label_smoothing = 0.1
    config.optim.clip_norm = 1.0

    config.train.batch_size = 128
    config.train.epochs = 200
    config.checkpoint.every_epochs = 10
    return config
