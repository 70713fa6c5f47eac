"""Facts about the data sets that can be prepared here. They allow checking a run before it downloads anything."""

import dataclasses

SAMPLED = "cifar10"  # a sample of this data set comes with the package

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_KANA = "o ki su tsu na ha ma ya re wo"


@dataclasses.dataclass(frozen=True)
class Known:
    """A set that `prepare` can make from its published archives.

    Attributes:
        kind: 'cifar' (one tar archive of binary batches) or 'idx' (four gzipped files of images or labels).
        version: of the data set in TFDS.
        image_shape: (H, W, C).
        class_names: by label.
        sizes: number of examples by stored split.
    """

    kind: str
    version: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    sizes: dict[str, int]


def _idx(names: tuple[str, ...]) -> Known:
    return Known("idx", "3.0.1", (28, 28, 1), names, {"train": 60000, "test": 10000})


def _cifar(names: str) -> Known:
    return Known("cifar", "3.0.2", (32, 32, 3), tuple(names.split()), {"train": 50000, "test": 10000})


KNOWN = {
    "cifar10": _cifar(_CIFAR10),
    "cifar100": _cifar(_CIFAR100),
    "mnist": _idx(tuple("0123456789")),
    "fashion_mnist": _idx(tuple(_FASHION.split(","))),
    "kmnist": _idx(tuple(_KANA.split())),
}
