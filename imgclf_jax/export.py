"""A trained network as one file that needs JAX alone: `python -m imgclf_jax.export --workdir=DIR --output=FILE`.

The file is a zip archive, not compressed, of

- `model.stablehlo`: the network with its weights, and the central crop, normalisation and softmax of evaluation,
  serialised by `jax.export` for CPU, CUDA and TPU: images uint8 [batch, H, W, C], any batch size -> class probabilities
  float32 [batch, classes];
- `model.json`: class_names, image_shape (H, W, C), preprocessing (how a photo becomes such an image), and where the
  network comes from: config, step, accuracies, data, versions.

Neither this package nor Flax is needed to use it, only `pip install jax flatbuffers numpy pillow`. These lines give the
probabilities of `imgclf_jax.predict`::

    import jax, jax.export, json, numpy, zipfile
    from PIL import Image, ImageOps

    archive = zipfile.ZipFile("model.zip")
    network = jax.jit(jax.export.deserialize(archive.read("model.stablehlo")).call)
    model = json.loads(archive.read("model.json"))

    def read(path):
        # -> uint8 [H, W, C], as the network expects it
        how, (height, width, channels) = model["preprocessing"], model["image_shape"]
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith("I"):  # 16-bit grey values
            image = Image.fromarray(((numpy.asarray(image).astype(int) + 128) // 257).astype("uint8"))
        if image.has_transparency_data and how["background"]:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, how["background"]), image)
        image = image.convert(how["mode"])
        left = top = 0
        if how["resize"] == "crop":
            left = max(0, (image.width - image.height * width / height) / 2)
            top = max(0, (image.height - image.width * height / width) / 2)
        box = (left, top, image.width - left, image.height - top)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
        return numpy.asarray(image).reshape(height, width, channels)

    probabilities = network(read("photo.jpg")[None])[0]
    print({name: float(p) for name, p in zip(model["class_names"], probabilities)})

The versions of JAX that can read it: the one that wrote it and those of at least the six months after it.
"""

if __name__ == "__main__":  # Before anything is imported that swallows Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import importlib.util
import json
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli

if TYPE_CHECKING:  # JAX and what needs it are slow to import: mistakes are told before.
    from imgclf_jax.training.trained import Trained

FLAGS = flags.FLAGS
PLATFORMS = ("cpu", "cuda", "tpu")
NETWORK, DESCRIPTION = "model.stablehlo", "model.json"


def define_flags() -> None:
    """The flags of this tool."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("output", None, "The new file.")
    flags.DEFINE_enum(
        "checkpoint", "reported", ["reported", "last", "best"], "Which one; reported: of the printed test accuracy."
    )


def main(argv: list[str]) -> int:
    """Parses the command line and exports. Returns the exit status."""
    define_flags()
    cli.parse_flags(argv)
    from imgclf_jax.terminal import output  # standard library alone

    problems = [] if FLAGS.workdir else ["--workdir is missing; give the folder that training printed"]
    if FLAGS.output:
        problems += output.problems(Path(FLAGS.output))
    else:
        problems.append("--output is missing; for example --output=model.zip")
    if importlib.util.find_spec("flatbuffers") is None:  # which jax.export writes with, and JAX does not depend on
        problems.append("the package flatbuffers is missing; pip install flatbuffers")
    if problems:
        raise UserError("\n".join(problems))

    from imgclf_jax.devices import xla
    from imgclf_jax.training import trained

    xla.configure_xla()
    cli.begin_work(needs_stdout=False)
    network = trained.load(Path(FLAGS.workdir), FLAGS.checkpoint)
    write(network, Path(FLAGS.output))
    _show(network, FLAGS.output)
    return 0


def write(network: "Trained", path: Path) -> None:
    """Writes the file. Raises `UserError` where there is one already or it cannot be written."""
    from imgclf_jax.terminal import output

    content = {NETWORK: serialize(network), DESCRIPTION: json.dumps(describe(network), indent=2).encode()}
    with output.new_file(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, value in content.items():
            archive.writestr(zipfile.ZipInfo(name), value)  # with no time in it: the same run, the same bytes


def serialize(network: "Trained") -> bytes:
    """Images uint8 [batch, H, W, C] -> probabilities float32 [batch, classes], as `jax.export` writes it.

    Evaluation has no code that differs between platforms: what does (`imgclf_jax.models.conv`, `.conv_pool`) are
    gradients, and batch normalisation takes no means here.
    """
    import jax
    import jax.export
    import numpy as np

    function = network.experiment.logits
    weights = jax.tree.map(np.asarray, (network.variables, network.normalization))

    def predict(images):
        # Behind the barrier weights are no constants that the compiler computes with: the numbers are `predict`'s.
        variables, normalize = jax.lax.optimization_barrier(weights)
        return jax.nn.softmax(function(variables, normalize, images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.uint8)
    frames = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no names of this machine's folders in the file
    try:
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images)
        return bytes(exported.serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)


def describe(network: "Trained") -> dict[str, Any]:
    """What `model.json` holds."""
    from imgclf_jax import config
    from imgclf_jax.workdir import provenance

    record = network.record
    reported = network.step == record.get("reported_step")
    return {
        "class_names": list(network.class_names),
        "image_shape": list(network.image_shape),
        "input": "images uint8 [batch, H, W, C]",
        "preprocessing": preprocessing(network),
        "output": "probabilities float32 [batch, classes]",
        "platforms": list(PLATFORMS),
        "step": network.step,
        # Those of another checkpoint would be no accuracies of this network.
        "results": record.get("results") if reported else None,
        "data": record["data"],
        "config": config.to_json(network.config),
        "trained_with": record.get("provenance"),
        "exported_with": provenance.collect(),
    }


def preprocessing(network: "Trained") -> dict[str, Any] | None:
    """Describes how a photo becomes an image that the network takes, as `imgclf_jax.data.decode.read` makes it.

    Returns `None` if the images have a number of channels that photos do not have.
    """
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(network.image_shape[2])
    if mode is None:
        return None
    resize = network.config.data.resize
    sizes = {
        "stretch": "the whole photo is resized to image_shape, which may change its aspect ratio",
        "crop": "the largest part in the middle that has the aspect ratio of image_shape is resized to image_shape",
    }
    background = None if mode == "RGBA" else "white"
    return {
        "mode": mode,
        "background": background,
        "resize": resize,
        "dtype": "uint8",
        "range": [0, 255],
        "steps": [
            "turn the photo as its EXIF orientation says",
            "scale grey values of 16 bits to 8 bits: (value + 128) // 257; those of a TIFF file that states 12 bits: "
            "round(value / 4095 * 255)",
            *([f"lay what is transparent over {background}"] if background else []),
            f"convert it to {mode}",
            f"{sizes[resize]}: bilinear, antialiased (Pillow's resize with BILINEAR)",
            "pass the pixels as they are, uint8 from 0 to 255: the network crops and normalises them itself",
        ],
    }


def _show(network, path):
    import jax

    from imgclf_jax.terminal.console import Console, count

    console = Console()
    shape = "×".join(map(str, network.image_shape))
    weights = sum(leaf.size for leaf in jax.tree.leaves(network.variables))
    console.print(
        f"wrote {path}, {count(Path(path).stat().st_size)}B: step {network.step}, {weights:,} weights, images {shape}"
    )
    console.print("To use it, with `pip install jax flatbuffers numpy pillow` and nothing else:\n")
    console.print(usage(path))


def usage(path: str) -> str:
    """Returns the lines of Python that load such a file, from the docstring above."""
    lines = (__doc__ or "").partition("::\n\n")[2].partition("\n\nThe versions")[0]
    return textwrap.dedent(lines).replace('"model.zip"', json.dumps(str(path)))


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
