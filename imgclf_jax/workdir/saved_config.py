"""`config.json`: the config that a run was started with."""

from pathlib import Path

from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import read_json, write_json, write_text

NAME = "config.json"
VERSION = 1  # of the form of the file; files without one have the form of version 1
SOURCE = "config_file.txt"  # the text of the config file, for people; it is never run
ADVICE = "; if you are sure that --config is the config of this run, delete the file: training with it writes it again"


def check_config(workdir: Path, config: ConfigDict, allow_change: bool) -> list[str]:
    """Compares a config with the one that `workdir` was started with.

    Returns:
        One line for each field that differs and can change what training computes.

    Raises:
        UserError: there are such fields and `allow_change` is not set.
    """
    old = _read_config(workdir)
    changed = configs.differences(configs.to_json(old), configs.to_json(config)) if old is not None else []
    if changed and not allow_change:
        raise UserError(
            f"workdir {workdir} holds a run with a different config:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nchoose another --workdir, or continue anyway with --allow_config_change"
        )
    return changed


def load_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`. Raises `UserError` if there is none, or if it cannot be read."""
    config = _read_config(workdir)
    if config is None:
        raise UserError(f"{workdir} holds no run (no config.json); give the workdir that training printed")
    return config


def _read_config(workdir):
    """The config, or `None` if there is no such file."""
    path = workdir / NAME
    values = read_json(path, ADVICE)
    if values is None:
        return None
    version = values.pop("version", VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version > VERSION:
        raise UserError(f"{path}: a later version of imgclf_jax wrote it; use that version")
    try:
        return configs.from_json(values)
    except UserError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def save_config(workdir: Path, config: ConfigDict, text: str | None = None) -> None:
    """Writes `config.json` and, if it is given, the text of the config file."""
    write_json(workdir / NAME, {"version": VERSION, **configs.to_json(config)})
    if text is not None:
        write_text(workdir / SOURCE, text)
