"""Export a trained network as one file that needs only JAX: `python -m imgclf_jax.export --workdir=DIR --output=FILE`.

The file is an uncompressed zip archive that contains

- `model.stablehlo`: the network with its weights and the central crop, normalization and softmax of evaluation,
  serialized by `jax.export` for CPU, CUDA and TPU: images uint8 [batch, H, W, C], any batch size -> class probabilities
  float32 [batch, classes];
- `model.json`: class_names, image_shape (H, W, C), preprocessing (how to turn a photo into such an image), and the
  origin of the network: config, step, accuracies, data, versions.

To use it you need neither this package nor Flax, only `pip install jax flatbuffers numpy pillow`. These lines give the
same probabilities as `imgclf_jax.predict`::

    import jax, jax.export, json, numpy, zipfile
    from PIL import Image, ImageOps

    archive = zipfile.ZipFile("model.zip")
    network = jax.jit(jax.export.deserialize(archive.read("model.stablehlo")).call)
    model = json.loads(archive.read("model.json"))

    def read(path):
        # -> uint8 [H, W, C], as the network expects it
        how, (height, width, channels) = model["preprocessing"], model["image_shape"]
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith("I"):  # 16-bit gray values
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

The file can be read by the version of JAX that wrote it and by those released in at least the six months after it.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
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

if TYPE_CHECKING:  # JAX is slow to import: report mistakes first.
    from imgclf_jax.training.trained import Trained

FLAGS = flags.FLAGS
PLATFORMS = ("cpu", "cuda", "tpu")
NETWORK, DESCRIPTION = "model.stablehlo", "model.json"


def define_flags() -> None:
    """Defines the flags of this tool."""
    cli.define_run()
    flags.DEFINE_string("output", None, "The file to write; it must not exist.")


def main(argv: list[str]) -> int:
    """Parses the command line and exports. Returns the exit status."""
    define_flags()
    cli.parse_flags(argv)
    from imgclf_jax.terminal import output  # imports only the standard library

    problems = [] if FLAGS.workdir else ["--workdir is missing; give the folder that training printed"]
    if FLAGS.output:
        problems += output.problems(Path(FLAGS.output))
    else:
        problems.append("--output is missing; for example --output=model.zip")
    if importlib.util.find_spec("flatbuffers") is None:  # jax.export needs it, but JAX does not depend on it.
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
    """Writes the exported network to a new file.

    Raises:
        UserError: the file exists or cannot be written.
    """
    from imgclf_jax.terminal import output

    content = {NETWORK: serialize(network), DESCRIPTION: json.dumps(describe(network), indent=2).encode()}
    with output.new_file(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, value in content.items():
            archive.writestr(zipfile.ZipInfo(name), value)  # without a time stamp: the same run gives the same bytes


def serialize(network: "Trained") -> bytes:
    """Serializes, with `jax.export`, images uint8 [batch, H, W, C] -> probabilities float32 [batch, classes].

    One program serves all platforms, because evaluation has no platform-specific code: only gradients
    (`imgclf_jax.models.conv`, `.conv_pool`) and the batch means of normalization have, and it uses neither.
    """
    import jax
    import jax.export
    import numpy as np

    function = network.experiment.logits
    weights = jax.tree.map(np.asarray, (network.variables, network.normalization))

    def predict(images):
        # The barrier keeps the compiler from folding the weights as constants, so the results equal those of `predict`.
        variables, normalize = jax.lax.optimization_barrier(weights)
        return jax.nn.softmax(function(variables, normalize, images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.uint8)
    frames = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # Keep the paths of this machine out of the file.
    try:
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images)
        return bytes(exported.serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)


def describe(network: "Trained") -> dict[str, Any]:
    """The content of `model.json`."""
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
        # The accuracies in the record belong to the reported checkpoint only.
        "results": record.get("results") if reported else None,
        "data": record["data"],
        "config": config.to_json(network.config),
        "trained_with": record.get("provenance"),
        "exported_with": provenance.collect(),
    }


def preprocessing(network: "Trained") -> dict[str, Any] | None:
    """Describes how to turn a photo into an input image of the network, as `imgclf_jax.data.decode.read` does.

    Returns:
        The description; `None` if the images have a number of channels that photos cannot have.
    """
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(network.image_shape[2])
    if mode is None:
        return None
    resize = network.config.data.resize
    sizes = {
        "stretch": "the whole photo is resized to image_shape, which may change its aspect ratio",
        "crop": "the largest central part with the aspect ratio of image_shape is resized to image_shape",
    }
    background = None if mode == "RGBA" else "white"
    return {
        "mode": mode,
        "background": background,
        "resize": resize,
        "dtype": "uint8",
        "range": [0, 255],
        "steps": [
            "rotate the photo according to its EXIF orientation",
            "scale 16-bit gray values to 8 bits: (value + 128) // 257; those of a TIFF file that declares 12 bits: "
            "round(value / 4095 * 255)",
            *([f"composite transparent pixels onto {background}"] if background else []),
            f"convert it to {mode}",
            f"{sizes[resize]}: bilinear, antialiased (Pillow's resize with BILINEAR)",
            "pass the pixels unchanged, as uint8 from 0 to 255: the network crops and normalizes them itself",
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
    console.print("To use it, with only `pip install jax flatbuffers numpy pillow`:\n")
    console.print(usage(path))


def usage(path: str) -> str:
    """The lines of Python that load such a file, taken from the module docstring."""
    lines = (__doc__ or "").partition("::\n\n")[2].partition("\n\nThe file can be read")[0]
    return textwrap.dedent(lines).replace('"model.zip"', json.dumps(str(path)))


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
