"""Config files: Python files with `get_config()`. Each mistake in them is reported in one line."""

import ast
import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import named


class _LastTuple(config_flags._ConfigFieldMultiFlag):  # type: ignore[name-defined]
    """Makes a tuple that is overridden twice take its last value, like any other field. The base class appends."""

    def parse(self, arguments):
        self.present = 0
        super().parse(arguments)


config_flags._ConfigFieldMultiFlag = _LastTuple  # type: ignore[attr-defined]


def config_path(argv: list[str]) -> str | None:
    """The path that `--config` gives or names on a command line; see `imgclf_jax.terminal.named`.

    Returns:
        `None` if the flag is missing, "" if it has no value.

    Raises:
        UserError: there is no config of that name.
    """
    given = None
    for index, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":  # Of several, the last counts, as for other flags.
            given = value if equals else (argv[index + 1] if index + 1 < len(argv) else "")
    return None if given is None else named.file(given)


def without_config(argv: list[str]) -> list[str]:
    """Returns a command line without `--config` and its value; overrides stay."""
    rest, skip = [], False
    for argument in argv:
        is_config = not skip and argument.startswith("-") and argument.lstrip("-").partition("=")[0] == "config"
        if not is_config and not skip:
            rest.append(argument)
        skip = is_config and "=" not in argument
    return rest


def split_options(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates the overrides of options, whose keys need not be in the config file, from a command line.

    Args:
        argv: the command line, program name first.

    Returns:
        The rest of it, and "section.options.key" -> value: a number, True, False, None, text, or a tuple of these.

    Raises:
        UserError: such an override has no value, or another one.
    """
    rest, found, arguments = [], {}, iter(argv)
    for argument in arguments:
        match = re.fullmatch(r"--?config\.(\w+\.(?:\w+_)?options\.[^=]+)(?:=(.*))?", argument, re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        path, text = match[1], match[2] if match[2] is not None else next(arguments, None)
        if text is None or not re.fullmatch(r"\w+\.\w+\.\w+", path):
            raise UserError(f"{argument}: write --config.{'.'.join(path.split('.')[:3])}=VALUE")
        found[path] = option(path, text)
    return rest, found


def set_options(config: Any, values: dict[str, Any], path: str | None) -> None:
    """Sets what `split_options` found in a config. Raises `UserError` if there is no such section."""
    for name, value in values.items():
        section, options, key = name.split(".")
        owner = config.get(section) if isinstance(config, ConfigDict) else None
        if not isinstance(owner, ConfigDict) or not isinstance(owner.get(options), ConfigDict):
            raise UserError(f"bad override of {named.label(path)}: there is no field {section}.{options}")
        owner = owner[options]
        if isinstance(owner.get(key), float) and type(value) is int:
            value = float(value)
        with owner.unlocked(), owner.ignore_type():
            owner[key] = value


def option(path: str, text: str) -> Any:
    """Returns the value of an option that was given as text. Raises `UserError` for lists, dicts and other values."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    value = tuple(value) if isinstance(value, list) else value
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, bool | int | float | str | None) for item in items):
        raise UserError(f"--config.{path}={text}: options are numbers, True, False, text or tuples of these")
    return value


def check(path: str) -> None:
    """Checks that a config file can be parsed.

    Raises:
        UserError: the file is missing, cannot be read or is not Python.
    """
    file = Path(path)
    if file.is_dir() or not file.exists():
        folder = file if file.is_dir() else file.parent
        near = sorted(other.as_posix() for other in folder.glob("*.py")) if folder.is_dir() else []
        wrong = "is a folder" if file.is_dir() else "does not exist"
        others = f"; this folder has {', '.join(near)}" if near else ""
        raise UserError(f"config file {path} {wrong}{others}{named.hint(path)}")
    if not file.is_file():
        raise UserError(f"config file {path} is not a regular file")
    try:
        ast.parse(file.read_bytes(), filename=path)  # As bytes: they may begin with a BOM or declare an encoding.
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise UserError(f"config file {path}{line}: {error.msg}") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"config file {path} cannot be read: {one_line(error)}") from error


@contextlib.contextmanager
def loading(path: str | None) -> Iterator[None]:
    """Lets a block that loads a config file import modules from the folder of the file, as a script can.

    Raises:
        UserError: the block raised an exception; the message has one line.
    """
    folder = None if path is None else str(Path(path).resolve().parent)
    # Python matches compiled files by a time in whole seconds: of two edits within a second, it may miss the second.
    writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    if folder:
        sys.path.insert(0, folder)
    try:
        yield
    except flags.Error as error:
        cause = _raised_by(path, error)
        text = str(error)
        if cause or "Traceback" in text:  # The parser puts the traceback into its message.
            reason = _typed_reason(cause) if cause else text.strip().splitlines()[-1]
            raise _failed(path, reason, cause) from error
        raise UserError(one_line(error)) from error
    except SystemExit as error:
        raise _failed(path, f"it ended the program with sys.exit({error.code!r})") from error
    except Exception as error:
        if isinstance(error, AttributeError) and "has no attribute 'get_config'" in str(error):
            what = f"config file {named.label(path)} has no get_config()"
            raise UserError(f"{what}; define one that returns a config made by default()") from error
        if cause := _raised_by(path, error):
            raise _failed(path, _typed_reason(cause), cause) from error
        raise UserError(f"bad override of {named.label(path)}: {_reason(error)}") from error
    finally:
        sys.dont_write_bytecode = writes_no_bytecode
        if folder in sys.path:
            sys.path.remove(folder)


def one_line(error: object) -> str:
    """The message of an exception, on one line."""
    while isinstance(error, KeyError | AttributeError) and error.args:
        error = error.args[0]  # str() of a KeyError is the repr of its message.
    return " ".join(str(error).split())


def _failed(path, reason, cause=None):
    line = _line(path, cause) if cause else None
    return UserError(f"config file {named.label(path)} failed{f' in line {line}' if line else ''}: {reason}")


def _line(path, cause):
    """The last line of the config file that was running when it raised `cause`, or `None`."""
    lines = [
        number
        for frame, number in traceback.walk_tb(cause.__traceback__)
        if Path(frame.f_code.co_filename).resolve() == Path(path).resolve()
    ]
    return lines[-1] if lines else None


def _raised_by(path, error):
    """The exception in the chain of `error` that the code of the config file raised, or `None`."""
    cause = None
    while error is not None and path is not None:
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        if any(Path(file).resolve() == Path(path).resolve() for file in set(files)):
            cause = error
        error = error.__cause__ or error.__context__
    return cause


def _typed_reason(error):
    return one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_reason(error)}"


def _reason(error):
    """Like `one_line`, but with a shorter message for a field that ConfigDict does not have."""
    text = one_line(error)
    if near := re.search(r'Did you mean "(.+)" instead of "(.+)"\?', text):
        return f"there is no field {near[2]}; did you mean {near[1]}?"
    if isinstance(error, AttributeError | KeyError) and text.strip("'").isidentifier():
        return f"there is no field {text.strip(chr(39))}"
    return text
