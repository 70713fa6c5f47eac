"""Loads the sweep that a command line asks for.

`--config` names one of these:

- A file with `get_sweep()`.
- A file with `get_config()`, and `--vary=section.field=VALUE,VALUE,...` for each field to vary: all combinations.
- A file with `get_config()` alone: a sweep of one variant.
"""

import ast
import importlib.machinery
import importlib.util
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.sweep.spec import Sweep, Variant, check_variants, grid
from imgclf_jax.terminal import cli, config_file, named

FLAGS = flags.FLAGS
# Fields that the runs of a sweep get from elsewhere -> what to do instead of overriding them.
NO_EFFECT = {"seed": "give --seeds", "data.fold": "every fold is run"}
EXAMPLE = "--vary=optim.learning_rate=0.01,0.03"


class Loaded(NamedTuple):
    """A sweep as asked for on a command line.

    Attributes:
        sweep: the sweep. Its base is a config, with the overrides of the command line.
        config_file: the value of `--config`.
    """

    sweep: Sweep
    config_file: str


def load(argv: list[str]) -> Loaded:
    """Parses a command line with `--config`, overrides and, if the tool defines it, the repeatable flag `--vary`.

    Overrides (`--config.section.field=value`) change the base, after `Sweep.changes`: the command line wins.

    Args:
        argv: the command line, program name first. The flags of the tool must be defined before.

    Raises:
        UserError: a flag, a file or an override is wrong.
    """
    path = cli.config_path(argv)
    if not path:
        missing = "is missing" if path is None else "has no value"
        raise UserError(f"--config {missing}; for example --config=ablations/augmentation")
    name, returned = _call(path, ("get_sweep", "get_config"))
    if name == "get_config":
        config = _parse(argv, path, _checked_config(returned, path))
        return Loaded(_ad_hoc(config, Path(path).stem, _vary()), path)
    if not isinstance(returned, Sweep):
        raise UserError(f"get_sweep() of {path} returned {type(returned).__name__}; return imgclf_jax.sweep.Sweep(...)")
    _check_sweep(returned, path)
    config = _parse(argv, path, _base(returned.base, path))
    if _vary():
        shown = named.label(path)
        raise UserError(f"--vary cannot be added to {shown}, which has get_sweep(); give a file with get_config()")
    overridden = _overridden()
    for field in overridden:
        if returned.variants and all(field in variant.changes for variant in returned.variants):
            raise UserError(f"--config.{field} has no effect: every variant of {named.label(path)} sets {field}")
    changes = {field: value for field, value in returned.changes.items() if field not in overridden}
    return Loaded(Sweep(config, returned.variants, changes, returned.folds), path)


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """Parses the value of `--vary`: "optim.learning_rate=0.01,0.03" -> ("optim.learning_rate", [0.01, 0.03]).

    Commas within brackets or quotes do not separate values. Text needs no quotes.

    Raises:
        UserError: the text has another form, the field does not exist, or it cannot hold a value.
    """
    path, equals, values = text.partition("=")
    if not equals or not path:
        raise UserError(f"--vary={text}: write a field, = and its values; for example {EXAMPLE}")
    config = configs.default()
    if ".".join(path.split(".")[:2]) in configs.FREE and path.count(".") == 2:
        return path, [config_file.option(path, value.strip()) for value in _split(values)]
    *sections, field = path.split(".")
    owner: Any = config
    for section in sections:
        owner = owner.get(section) if isinstance(owner, ConfigDict) else None
    if not isinstance(owner, ConfigDict) or field not in owner:
        raise UserError(f"--vary={text}: {configs.unknown_field(path)}")
    if isinstance(owner[field], ConfigDict):
        first = next(iter(owner[field]))
        raise UserError(f"--vary={text}: {path} is a section; name one of its fields, such as {path}.{first}")
    return path, [_value(text, value.strip(), owner.get_type(field), owner[field] is None) for value in _split(values)]


def _vary():
    return list(FLAGS["vary"].value or ()) if "vary" in FLAGS else []


def _overridden() -> dict[str, Any]:
    """The overrides of the command line: "section.field" -> value."""
    return {**config_flags.get_override_values(FLAGS["config"]), **_options}


_options: dict[str, Any] = {}  # those of the command line that are not flags; see `config_file.split_options`


def _ad_hoc(config, stem, varied):
    fields: dict[Any, Any] = {}
    for text in varied:
        path, values = parse_vary(text)
        if path in fields:
            raise UserError(f"--vary={text}: {path} is varied twice; write all values in one --vary")
        fields[path] = values
    for path in _overridden():
        if path in fields:
            raise UserError(f"--config.{path} has no effect together with --vary={path}=...")
    return Sweep(config, grid(fields) if fields else [Variant(stem, {})])


def _call(path: str, names: tuple[str, ...]) -> tuple[str, Any]:
    """Runs a config file, and calls its first function of these names. Returns its name and what it returned."""
    config_file.check(path)
    with config_file.loading(path):
        loader = importlib.machinery.SourceFileLoader("config_of_the_sweep", path)
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))  # type: ignore
        loader.exec_module(module)
        name = next((name for name in names if hasattr(module, name)), None)
        function = getattr(module, name) if name else None
        if name and callable(function):
            return name, function()
    if name:
        raise UserError(f"{name} in {path} is not a function; define it with def {name}():")
    lacks = "get_config()" if names == ("get_config",) else "get_sweep() or get_config()"
    raise UserError(f"config file {named.label(path)} has no {lacks}")


def _base(base, path):
    if isinstance(base, ConfigDict):
        return base
    file = named.file(fspath(base))
    file = file if file != fspath(base) else (Path(path).parent / file).as_posix()
    return _checked_config(_call(file, ("get_config",))[1], file)


def _checked_config(config, path):
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}; return a config made by default()")
    return config


def _check_sweep(sweep, path):
    where = f"get_sweep() of {path}"
    if not isinstance(sweep.base, str | PathLike | ConfigDict):
        raise UserError(f'{where}: the base is {sweep.base!r}; give the path of a config file, such as "../cnn.py"')
    if not isinstance(sweep.changes, Mapping):
        raise UserError(f'{where}: changes={sweep.changes!r} must be a dict {{"section.field": value}}')
    check_variants(where, sweep.variants)


def _parse(argv, path, config):
    """Parses all flags, and applies the overrides to a config."""
    argv, options = config_file.split_options(argv)
    config_file.set_options(config, options, path)
    rest = config_file.without_config(argv[1:])
    with config_file.loading(path):
        config_flags.DEFINE_config_dict("config", config, cli.CONFIG_HELP, FLAGS, sys_argv=[argv[0], *rest])
    cli.parse([argv[0], *rest])
    cli.look_for_parts(path)
    _options.clear()
    _options.update(options)
    for field, advice in NO_EFFECT.items():
        if field in _overridden():
            raise UserError(f"--config.{field} has no effect in a sweep; {advice}")
    return FLAGS["config"].value


def _split(text):
    """Splits at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "([") - (character in ")]")
    return parts


def _value(argument, text, kind, optional):
    wanted = {bool: "True or False", int: "whole numbers", float: "numbers", tuple: "tuples such as (24,24)"}.get(kind)
    try:
        if optional and text == "None":
            return None
        if kind is str:
            return ast.literal_eval(text) if text[:1] in ("'", '"') else text
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            value = ast.literal_eval(text)
            if not isinstance(value, tuple | list):
                raise ValueError
            return value
        return kind(text)
    except (ValueError, SyntaxError, KeyError) as error:
        raise UserError(f"--vary={argument}: {text!r} does not fit; the values must be {wanted or 'text'}") from error
