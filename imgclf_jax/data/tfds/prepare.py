"""Prepares a TFDS data set in its standard layout from published archives, without TensorFlow.

TFDS's own builder writes the set, so every other tool finds it. Only the parts that need TensorFlow are replaced:
downloading the files, reading them and encoding PNG.
"""

import io
import logging
import shutil
import time
import urllib.parse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from imgclf_jax.data.tfds import archives, catalog, prepared
from imgclf_jax.data.tfds.download import Published, Unavailable, check, fetch
from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic, seals
from imgclf_jax.storage.files import reason_of

_STALE_SECONDS = 3600  # preparing takes seconds; a folder unchanged for this long belongs to a killed process
_EVERY = 1000  # examples between two reports of progress

_log = logging.getLogger(__name__)


def published_files(base: str) -> tuple[Published, ...]:
    """Returns the archives that a set is made from, as registered with TFDS."""
    import tensorflow_datasets as tfds

    infos = tfds.builder_cls(base).url_infos
    return tuple(Published(url, i.filename, int(i.size), i.checksum) for url, i in infos.items())


def check_obtainable(config_data: Any, root: Path) -> None:
    """Checks that a set can be prepared, as far as this is known without downloading anything.

    Raises:
        Unavailable: the set would have to be downloaded, but downloads are switched off.
        UserError: the configured archive does not exist, or the set cannot be written to `root`.
    """
    base = prepared.split_name(config_data.name)[0]
    if config_data.archive and not Path(config_data.archive).expanduser().exists():
        raise UserError(f"data.archive={config_data.archive!r}: does not exist")
    if config_data.archive or config_data.download:
        _check_writable(base, root)
        return
    have = _download_folder(base, root).is_dir()  # check this first to avoid importing TFDS
    if not have or not all(_downloaded(base, p, root).is_file() for p in published_files(base)):
        raise Unavailable(
            f"data.name={config_data.name!r}: not prepared under {root}, and data.download=False; give "
            "--config.data.download=True, or what you have with --config.data.archive=FILE or --config.data.dir=FOLDER"
        )


def _check_writable(base: str, root: Path) -> None:
    if not atomic.is_writable(root):
        raise UserError(
            f"{root}: {base} is not prepared there, and the folder is not writable; give another "
            "one with --config.data.dir=FOLDER or TFDS_DATA_DIR"
        )


def prepare(config_data: Any, root: Path, progress: Progress) -> Path:
    """Prepares a set of `catalog.KNOWN` under `root` and returns its folder.

    Takes its archives from `config_data.archive`, from an earlier download, or from the network.

    Raises:
        Unavailable: the archives cannot be downloaded.
        UserError: `archive` is not the published file, or `root` cannot be written.
    """
    base = prepared.split_name(config_data.name)[0]
    _check_writable(base, root)
    try:
        paths = _archives(base, config_data, root, progress)
        return _build(base, paths, root, progress)
    except OSError as e:
        raise UserError(
            f"{root}: cannot write {base} there ({reason_of(e)}); free up space or give --config.data.dir=FOLDER"
        ) from e


def _archives(base: str, config_data: Any, root: Path, progress: Progress) -> dict[str, Path]:
    """Returns the paths of the verified archives, by published file name."""
    files = published_files(base)
    if config_data.archive:
        return {p.filename: _check_given(Path(config_data.archive).expanduser(), p, len(files)) for p in files}
    paths = {}
    for published in files:
        path = _downloaded(base, published, root)
        if not path.is_file() or check(published, path):
            if not config_data.download:
                raise Unavailable(
                    f"{path}: missing or damaged, and data.download=False; give --config.data.download=True"
                )
            fetch(published, _address(config_data.url, published, len(files)), path, progress)
        paths[published.filename] = path
    return paths


def _check_given(archive: Path, published: Published, count: int) -> Path:
    if count > 1 and not archive.is_dir():
        raise UserError(f"data.archive={str(archive)!r}: must be a folder that holds the {count} published files")
    path = archive / published.filename if archive.is_dir() else archive
    if difference := check(published, path):
        raise UserError(f"data.archive={str(archive)!r}: {path.name} {difference}; get it from {published.url}")
    return path


def _address(mirror: str, published: Published, count: int) -> str:
    """Returns the address of a file. `mirror` is a folder if it ends in a slash or if there are several files."""
    if not mirror:
        return published.url
    if count == 1 and not mirror.endswith("/"):
        return mirror
    return urllib.parse.urljoin(mirror.rstrip("/") + "/", published.filename)


def _download_folder(base: str, root: Path) -> Path:
    """Returns the folder for the downloads of a set: its own, because MNIST and similar sets share file names."""
    return root / "downloads" / "imgclf_jax" / base


def _downloaded(base: str, published: Published, root: Path) -> Path:
    return _download_folder(base, root) / published.filename


def _build(base: str, paths: dict[str, Path], root: Path, progress: Progress) -> Path:
    import tensorflow_datasets as tfds

    known = catalog.KNOWN[base]
    folder = root / base / known.version
    reader = {"cifar": archives.Cifar, "idx": archives.Idx}[known.kind]
    content = reader(base, paths)
    downloaded = sum(p.stat().st_size for p in paths.values())
    tfds.disable_progress_bar()  # it would overwrite ours
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with atomic.temporary_folder(folder.parent) as temporary:
            _sweep(folder.parent)
            builder = _builder_class(base, content, downloaded, progress)(data_dir=temporary)
            builder.download_and_prepare(download_config=config, file_format="array_record")
            written = temporary / base / known.version
            seals.seal(written)
            atomic.sync(written)
            written.rename(folder)
            atomic.sync_names(folder.parent)
    except Exception as e:
        if prepared.find(root, f"{base}:{known.version}") == folder:
            return folder  # Another process was faster.
        raise UserError(
            f"{folder}: writing it failed ({reason_of(e)}); free up space there or give --config.data.dir=FOLDER"
        ) from e
    return folder


def _builder_class(base: str, content: Any, downloaded: int, progress: Progress) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    parent = tfds.builder_cls(base)
    total = sum(content.sizes.values())
    first = dict(zip(content.sizes, np.cumsum([0, *content.sizes.values()]).tolist(), strict=False))

    with registered.skip_registration():

        class Prepared(parent):  # type: ignore[misc, valid-type]
            """TFDS's builder, with the parts that need TensorFlow replaced."""

            name = base

            def _make_download_manager(self, **kwargs: Any) -> Any:
                return SimpleNamespace(downloaded_size=downloaded)  # TFDS's own one can access the network

            def _log_download_bytes(self) -> None:
                """Progress is reported to the caller, not printed."""

            _log_download_done = _log_download_bytes

            def _split_generators(self, dl_manager: Any) -> Any:
                for feature, names in content.names.items():
                    self.info.features[feature].names = names
                return {split: self._generate_examples(split) for split in content.sizes}

            def _generate_examples(self, split: str) -> Any:
                for i, example in enumerate(content.examples(split)):
                    if i % _EVERY == 0:
                        progress(f"preparing {base}", first[split] + i, total)
                    yield i, {**example, "image": _png(example["image"])}  # TFDS orders by this key
                progress(f"preparing {base}", first[split] + content.sizes[split], total)

    Prepared.__module__ = parent.__module__  # TFDS records it in the set, and looks there for package files
    return Prepared


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _sweep(folder: Path) -> None:
    """Deletes what killed preparations, by TFDS itself or by earlier versions, left behind."""
    for old in folder.glob("incomplete.*"):
        try:
            newest = max(p.stat().st_mtime for p in [old, *old.iterdir()])
            if time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(old)
        except OSError as e:
            _log.info("could not delete %s: %s", old, e)
