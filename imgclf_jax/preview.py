"""Show what augmentation does: `python -m imgclf_jax.preview --config=configs/NAME.py [--image=FILE ...]`.

Writes one picture with one row per image: the original, then augmented versions, drawn as in training and shown before
normalization. Without `--image`, the rows are training examples that cycle through the classes. If images are mixed,
each row is mixed with its neighbor, and the weights of both are written below.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import contextlib
import itertools
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic
from imgclf_jax.terminal import cli, output

FLAGS = flags.FLAGS
CELL = 128  # smallest side of an image in the picture, in pixels
GAP = 6
MOST = 10_000  # most images in a picture; so many already have at least 160 million pixels
COLORS = {"page": (255, 255, 255), "text": (40, 40, 40)}


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    cli.define_parts()
    flags.DEFINE_multi_string("image", [], "A photo to augment; can be repeated. Default: training examples.")
    flags.DEFINE_string("output", None, "The PNG to write. Default: preview-NAME.png, or the next free number.")
    flags.DEFINE_string("save_dir", None, "Also write each image as a separate PNG to this folder.")
    flags.DEFINE_integer("rows", 4, "Number of training examples.", lower_bound=1)
    flags.DEFINE_integer("versions", 7, "Number of augmented versions of each image.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Parses the command line and writes the picture. Returns the exit status."""
    define_flags()
    config = cli.parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=cnn")
    target = _output(FLAGS.output, Path(cli.config_path(argv) or "").stem)
    count = len(FLAGS.image) or FLAGS.rows
    if count * (1 + FLAGS.versions) > MOST:
        raise UserError(
            f"{count} images with {FLAGS.versions} versions of each are too many: a picture holds at most {MOST:,}; "
            "give fewer --rows, --image or --versions"
        )
    folder = None if FLAGS.save_dir is None else _save_dir(FLAGS.save_dir)

    from imgclf_jax.devices import xla
    from imgclf_jax.training import validate

    if problems := validate.value_problems(config, "data."):
        raise UserError("\n".join(problems))
    xla.configure_xla()
    cli.begin_work(needs_stdout=False)
    names, contents, originals = _given(config, FLAGS.image) if FLAGS.image else _examples(config, FLAGS.rows)
    with xla.quiet():
        versions, weights = augmented(config, originals, FLAGS.versions)
    write(target, folder, names, originals, versions, captions(contents, weights))
    print(f"{target}: {len(names)} images, {FLAGS.versions} augmented versions of each")
    if folder is not None:
        print(f"{folder}: the same {len(names) * (1 + FLAGS.versions)} images as separate files")
    return 0


def augmented(config: ConfigDict, images: np.ndarray, versions: int) -> tuple[np.ndarray, np.ndarray]:
    """Augments and mixes images as the first training steps would, without normalization.

    Args:
        config: the whole config.
        images: uint8 [N, H, W, C].
        versions: number of versions of each image.

    Returns:
        The versions, uint8 [versions, N, h, w, C]; and how much of each image is in them, float32 [versions, N, N]. If
        N is odd and images are mixed, the last one is mixed with the first.

    Raises:
        UserError: the config's augmentation does not fit the images.
    """
    import jax
    import jax.numpy as jnp

    from imgclf_jax import augment
    from imgclf_jax.rng import step_keys

    height, width, channels = images.shape[1:]
    if problems := augment.problems(config.augment, (height, width, channels)):
        raise UserError("\n".join(problems))
    key = jax.random.key(config.seed)

    count = len(images)
    mix = augment.mixing(config.augment)
    batch = np.concatenate([images, images[:1]]) if mix and count % 2 else images

    @jax.jit
    def version(step):
        key_of_step = step_keys(key, step).augment
        seen = augment.augment(config.augment, key_of_step, jnp.asarray(batch), jnp.arange(len(batch)))
        weights = jnp.eye(count)[jnp.arange(len(batch)) % count]
        return mix(key_of_step, seen, weights, jnp.arange(len(batch))) if mix else (seen, weights)

    steps, weights = zip(*(jax.device_get(version(step)) for step in range(versions)), strict=True)
    seen = np.round(np.clip(np.stack(steps), 0, 1) * 255).astype(np.uint8)
    return seen[:, :count], np.stack(weights)[:, :count]


def captions(contents: Sequence[str], weights: np.ndarray) -> list[list[str]]:
    """Returns what is in each version: one list of captions for each image, or none if no images are mixed.

    Args:
        contents: what each image shows.
        weights: [versions, N, N] from `augmented`.
    """
    if (weights == np.eye(len(contents))).all():
        return []

    def caption(row, shares):
        order = [row, *(other for other in np.flatnonzero(shares) if other != row)]  # itself, then its partner
        return "\n+ ".join(f"{shares[image]:.2f} {contents[image]}" for image in order)

    return [[caption(row, shares) for shares in weights[:, row]] for row in range(len(contents))]


def write(
    target: Path,
    folder: Path | None,
    names: Sequence[str],
    originals: np.ndarray,
    versions: np.ndarray,
    below: Sequence[Sequence[str]] = (),
) -> None:
    """Writes the picture and, if `folder` is given, each image as a separate file: everything or nothing.

    Args:
        target: the picture, a PNG.
        folder: a folder that is empty or missing; `None`: only the picture is written.
        names: see `grid`.
        originals: see `grid`.
        versions: see `grid`.
        below: see `grid`.

    Raises:
        UserError: a file cannot be written.
    """
    page = grid(names, originals, versions, below)
    with output.new_file(target, "wb") as file:  # It appears only after all images have been written.
        page.save(file, format="png")
        if folder is not None:
            _save_each(folder, names, originals, versions)


def grid(names: Sequence[str], originals: np.ndarray, versions: np.ndarray, below: Sequence[Sequence[str]] = ()) -> Any:
    """Draws the picture.

    Args:
        names: captions of the rows.
        originals: uint8 [N, H, W, C].
        versions: uint8 [versions, N, h, w, C].
        below: captions of the versions, [N][versions], of up to two lines; empty: none.

    Returns:
        A `PIL.Image`.
    """
    from PIL import Image, ImageDraw, ImageFont

    # Small images are enlarged by a whole factor, so that all their pixels stay squares of one size.
    scale = -(-CELL // min(originals.shape[1:3]))
    height, width = (scale * max(sides) for sides in zip(originals.shape[1:3], versions.shape[2:4], strict=True))
    font = ImageFont.truetype(_font(), size=13)
    line = GAP + 16
    caption = 2 * line if below else 0
    columns = 1 + len(versions)
    size = (columns * (width + GAP) + 3 * GAP, line + len(names) * (height + caption + line) + GAP)
    page = Image.new("RGB", size, COLORS["page"])
    draw = ImageDraw.Draw(page)
    x_of = [GAP] + [3 * GAP + column * (width + GAP) for column in range(1, columns)]
    for x, heading in ((x_of[0], "original"), (x_of[1], "augmented")):
        draw.text((x, GAP), heading, COLORS["text"], font)
    for row, name in enumerate(names):
        top = line + row * (height + caption + line)
        for x, image in zip(x_of, [originals[row], *versions[:, row]], strict=True):
            shown = _picture(image).resize((scale * image.shape[1], scale * image.shape[0]), Image.Resampling.NEAREST)
            page.paste(shown.convert("RGB"), (x + (width - shown.width) // 2, top + (height - shown.height) // 2))
        for x, text in zip(x_of[1:], below[row] if below else (), strict=False):
            for number, part in enumerate(text.splitlines()):
                place = x, top + height + 3 + 16 * number
                draw.text(place, _shortened(part, draw, font, width), COLORS["text"], font)
        draw.text(
            (x_of[0], top + height + caption + 3),
            _shortened(name, draw, font, page.width - 2 * GAP),
            COLORS["text"],
            font,
        )
    return page


def _font():
    """The file of a font with the letters of most European languages, which Pillow's own lacks; from Matplotlib."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _given(config, files):
    """(names, contents, uint8 [N, H, W, C]) of the given photos, resized as in training."""
    from imgclf_jax import data
    from imgclf_jax.data import decode

    size = tuple(config.data.image_size)
    shape = (*size, 3) if len(size) == 2 else data.describe(config.data).image_shape
    images, problems = [], []
    for file in files:
        try:
            images.append(decode.read(Path(file), shape[:2], config.data.resize, shape[2]))
        except decode.BadPhoto as reason:
            problems.append(f"--image={file}: {reason}")
    if problems:
        raise UserError("\n".join(problems))
    names = [Path(file).name for file in files]
    return names, names, np.stack(images)


def _examples(config, count):
    """(names, classes, uint8 [N, H, W, C]) of training examples that cycle through the classes."""
    from imgclf_jax import data
    from imgclf_jax.devices import parallel
    from imgclf_jax.terminal.console import Console

    console = Console(config.log.progress)
    strategy = parallel.create(config, data.describe_split(config.data, "train").image_bytes)
    dataset = data.load_split(config.data, "train", progress=console.task, stream=strategy.streamed)
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    split = dataset.splits["train"]
    by_class = [np.flatnonzero(split.labels == label) for label in range(len(dataset.class_names))]
    turns = itertools.zip_longest(*(indices[:count] for indices in by_class))
    chosen = [index for turn in turns for index in turn if index is not None][:count]
    classes = [dataset.class_names[split.labels[index]] for index in chosen]
    names = [f"{name}  {split.ids[index]}" for name, index in zip(classes, chosen, strict=True)]
    return names, classes, np.stack([split.images[index] for index in chosen])


def _output(given, stem):
    if given is None:
        suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        places = (Path(f"preview-{stem}{suffix}.png") for suffix in suffixes)
        given = next(place for place in places if not os.path.lexists(place))
    if Path(given).suffix.lower() != ".png":
        raise UserError(f"--output={given} does not end in .png; choose a name that does")
    if problems := output.problems(Path(given)):
        raise UserError(problems[0])
    return Path(given)


def _save_dir(given):
    if not given:
        raise UserError("--save_dir= is empty; give the name of a folder")
    folder = Path(given)
    problems = output.folder_problems(folder, "--save_dir", missing=True)
    if not problems and folder.exists() and any(folder.iterdir()):
        problems = [f"--save_dir={folder} is not empty; choose another folder"]
    if problems:
        raise UserError(problems[0])
    return folder


def _save_each(folder, names, originals, versions):
    """Writes all images. On failure, removes what was written, including the folders that were made."""
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    placed = []
    try:
        with atomic.temporary_folder(folder) as temporary:
            for row, name in enumerate(names):
                stem = f"{row + 1:02}-{''.join(c if c.isalnum() else '-' for c in Path(name).stem)[:60]}"
                _picture(originals[row]).save(temporary / f"{stem}-original.png")
                for number, image in enumerate(versions[:, row], start=1):
                    _picture(image).save(temporary / f"{stem}-{number:02}.png")
            for path in sorted(temporary.iterdir()):
                placed.append(folder / path.name)
                path.rename(placed[-1])
    except BaseException as error:
        for path in placed:
            with contextlib.suppress(OSError):
                path.unlink()
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"cannot write --save_dir={folder}: {reason}; choose another folder") from error
        raise


def _picture(image):
    from PIL import Image

    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _shortened(text, draw, font, width):
    text = unicodedata.normalize("NFC", text)  # File names may have letters and accents apart.
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    return text


if __name__ == "__main__":
    sys.exit(cli.run_tool(main))
