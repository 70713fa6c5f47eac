"""The predictions of a trained network for every example of a split."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgclf_jax import data
from imgclf_jax.data.tfds import sample
from imgclf_jax.data.types import Images, LazyImages, Progress
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.output import csv_line
from imgclf_jax.training import trained


class Chosen(LazyImages):
    """A selection of the images of a split, in any order. Images are decoded or copied only on access.

    Args:
        images: uint8 [N, H, W, C].
        indices: int [M], indices into `images`.
    """

    def __init__(self, images: Images, indices: np.ndarray):
        super().__init__((len(indices), *images.shape[1:]))
        self._images, self._indices = images, indices

    def read(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, C]."""
        return np.asarray(self._images[int(self._indices[index])])


class Predictions(NamedTuple):
    """The predictions of one network on one split of N examples.

    Attributes:
        split: "test" or "valid".
        class_names: by label.
        ids: str [N].
        images: uint8 [N, H, W, C], possibly decoded on access.
        labels: int32 [N].
        scores: float32 [N, C], log-probabilities, because a probability may underflow a float32.
    """

    split: str
    class_names: tuple[str, ...]
    ids: np.ndarray
    images: Images
    labels: np.ndarray
    scores: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Class probabilities, float32 [N, C]."""
        return np.exp(self.scores)

    @property
    def finite(self) -> np.ndarray:
        """bool [N], whether all scores of an example are finite, as exact evaluation requires of its logits."""
        return np.isfinite(self.scores).all(axis=1)

    @property
    def predicted(self) -> np.ndarray:
        """int [N], the class with the highest probability; -1 (no class) if the probabilities are NaN."""
        return np.where(self.finite, self.scores.argmax(axis=1), -1)

    @property
    def correct(self) -> int:
        """Number of correct predictions. An example whose probabilities are NaN counts as wrong."""
        return int((self.predicted == self.labels).sum())

    def only_finite(self) -> "Predictions":
        """Returns only the examples with finite scores, which can be measured and drawn."""
        kept = np.flatnonzero(self.finite)
        if len(kept) == len(self.labels):
            return self
        return self._replace(
            ids=self.ids[kept],
            images=Chosen(self.images, kept),
            labels=self.labels[kept],
            scores=self.scores[kept],
        )

    def own_scores(self) -> np.ndarray:
        """float32 [N], the log-probability of each example's true class."""
        return self.scores[np.arange(len(self.labels)), self.labels]

    def near_ties(self, margin: float) -> int:
        """Number of examples whose two highest probabilities differ by less than `margin`."""
        if self.scores.shape[1] < 2:
            return 0
        second, first = np.sort(self.probabilities, axis=1)[:, -2:].T
        return int((first - second < margin).sum())


def predict(network: trained.Trained, progress: Progress) -> Predictions:
    """Predicts the test split, or the validation split of a run that has no test split.

    Data is never downloaded, and the bundled sample replaces the full data set only if the run was trained on it.

    Raises:
        UserError: the data is not on this machine or differs from the data of the run.
    """
    described = network.record["data"]
    split = next((name for name in ("test", "valid") if described["counts"].get(name)), None)
    if split is None:
        raise UserError("the run has neither a test split nor a validation split, so nothing was predicted")
    settings = network.config.data.copy_and_resolve_references()
    source = "sample" if described["name"] == sample.NAME else settings.source
    settings.update(download=False, allow_sample=False, source=source)
    try:
        strategy = parallel.create(network.config, data.describe_split(settings, split).image_bytes)
        dataset = data.load_split(settings, split, progress=progress, stream=strategy.streamed)
    except UserError as error:
        raise UserError(
            f"the {split} split cannot be read ({error}). A report downloads nothing; the run read the data from "
            f"{described['location']}"
        ) from error
    if dataset.name != described["name"]:
        raise UserError(f"the run used {described['name']}, but {dataset.location} has {dataset.name}")
    trained.check_classes(network, dataset)
    if dataset.image_shape != network.image_shape:
        raise UserError(
            f"the images in {dataset.location} are {_shape(dataset.image_shape)}, but the network takes "
            f"{_shape(network.image_shape)}"
        )
    examples = dataset.splits[split]
    scores = trained.predictor(network, log=True)(
        examples.images, lambda done: progress(f"predicting {split}", done, len(examples))
    )
    return Predictions(split, network.class_names, examples.ids, examples.images, examples.labels, scores)


def write_csv(path: Path, predictions: Predictions) -> None:
    """Writes one line per example: id, true class, predicted class, their probabilities, then those of all classes.

    An example whose probabilities are NaN has no predicted class. Names that a spreadsheet would evaluate are escaped,
    see `imgclf_jax.terminal.output.csv_line`.

    Raises:
        OSError: the file cannot be written.
    """
    names, probabilities = predictions.class_names, predictions.probabilities
    columns = ["id", "true", "predicted", "probability", "probability_of_true", *(f"p({name})" for name in names)]
    # The bytes of file names that are not valid UTF-8 are preserved.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        file.write(csv_line(columns))
        examples = zip(predictions.ids, predictions.labels, predictions.predicted, probabilities, strict=True)
        for name, label, guess, row in examples:
            guessed, probability = (names[guess], row[guess]) if guess >= 0 else ("", np.nan)
            values = (float(f"{value:.6g}") for value in (probability, row[label], *row))
            file.write(csv_line([str(name), names[label], guessed, *values]))


def _shape(sizes):
    return "×".join(map(str, sizes))
