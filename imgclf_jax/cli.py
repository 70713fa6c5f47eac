"""Command lines of the tools: config files with overrides, and mistakes told in one line each."""

import ast
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from imgclf_jax.errors import UserError, told

FLAGS = flags.FLAGS
PATH_FLAGS = ("workdir", "output", "save_dir", "image")  # of all tools


def parse(argv: list[str]) -> ConfigDict | None:
    """Parses flags and the config file with its overrides.

    Args:
        argv: the command line, program name first. The tool's own flags have been defined.

    Returns:
        The locked config, or `None` where no `--config` was given.

    Raises:
        UserError: whatever is wrong with flags, file or overrides.
    """
    if "config" not in FLAGS:
        config_flags.DEFINE_config_file(
            "config", None, "The experiment, a Python file with get_config().", sys_argv=argv
        )
    path = config_path(argv)
    if path == "":
        raise UserError("--config is given without a value; for example --config=configs/cnn.py")
    if path is not None:
        _check_file(path)
    try:
        rest = FLAGS(argv)[1:]
        config = FLAGS["config"].value
        hasattr(config, "seed")  # An OSError in get_config() comes out only when the config is looked at.
    except flags.Error as error:
        cause = _raised_by(path, error)
        text = str(error)
        if cause or "Traceback" in text:  # The parser puts tracebacks into its message.
            reason = _told(cause) if cause else text.strip().splitlines()[-1]
            raise UserError(f"config file {path} failed: {reason}") from error
        raise UserError(_one_line(error)) from error
    except Exception as error:
        cause = _raised_by(path, error)
        what = f"config file {path} failed: {_told(cause)}" if cause else f"bad override of {path}: {_reason(error)}"
        raise UserError(what) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    _expand_paths()
    if path is None:
        return None
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}; return a config made by default()")
    return config


def parse_flags(argv: list[str], positional: bool = False) -> list[str]:
    """Parses the flags of a tool that takes no `--config`.

    Args:
        argv: the command line, program name first. The tool's flags have been defined.
        positional: whether there may be arguments that are no flags.

    Returns:
        Those arguments.

    Raises:
        UserError: an unknown flag, a value that it cannot have, an argument that is not expected.
    """
    try:
        rest = FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    _expand_paths()
    return rest


def _expand_paths():
    """The shell leaves the `~` of `--flag=~/x` alone, and a folder of that name is never meant."""
    for name in PATH_FLAGS:
        if name in FLAGS and (value := FLAGS[name].value):
            expand = os.path.expanduser
            FLAGS[name].value = [expand(item) for item in value] if isinstance(value, list) else expand(value)


def run_tool(main: Callable[[list[str]], int], takes_config: bool = True) -> int:
    """Calls a tool's `main(argv)` and returns its exit status, telling a `UserError` without a traceback.

    Args:
        main: see `imgclf_jax.main.main`.
        takes_config: whether the tool has `--config`, of which `--help` then speaks.
    """
    warnings.simplefilter("default", UserWarning)
    warnings.showwarning = _show_warning
    sys.unraisablehook = _show_unraisable
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs tracebacks of what it raises as well.
    logging.getLogger("jax").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Likewise.
    argv = sys.argv
    if {"--help", "-h", "-help"} & set(argv[1:]):
        return _help(main, takes_config)
    try:
        return main(argv)
    except UserError as error:
        print(told(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def config_path(argv: list[str]) -> str | None:
    """The value of `--config` on a command line, or `None` where there is none."""
    for index, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else (argv[index + 1] if index + 1 < len(argv) else "")
    return None


def _check_file(path):
    """The mistakes in a config file that would otherwise end in a traceback from deep inside the flag parser."""
    file = Path(path)
    if not file.is_file():
        near = sorted(other.as_posix() for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"config file {path} does not exist" + (f"; there are {', '.join(near)}" if near else ""))
    try:
        tree = ast.parse(file.read_text(), filename=path)
    except SyntaxError as error:
        raise UserError(f"config file {path}, line {error.lineno}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"config file {path} cannot be read: {_one_line(error)}") from error
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    if "get_config" not in names:
        raise UserError(f"config file {path} defines no get_config(); it must return a config made by default()")


def _show_unraisable(unraisable):
    # When a checkpoint cannot be written, its other writes, in C++, find nobody left to tell that they failed as well;
    # when it cannot be read, its other reads are given up, and say so at a length of a thousand lines.
    given_up = getattr(getattr(unraisable.object, "cr_code", None), "co_filename", "")
    if str(unraisable.exc_value) != "Event loop is closed" and "orbax" not in Path(given_up).parts:
        sys.__unraisablehook__(unraisable)


def _raised_by(path, error):
    """What the code of the config file raised, out of all that `error` was raised after; or `None`."""
    cause = None
    while error is not None and path is not None:
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        if any(Path(file).resolve() == Path(path).resolve() for file in files):
            cause = error
        error = error.__cause__ or error.__context__
    return cause


def _told(error):
    return f"{type(error).__name__}: {_reason(error)}"


def _help(main, takes_config):
    print(sys.modules[main.__module__].__doc__)
    sys.modules[main.__module__].define_flags()
    print(FLAGS.module_help(sys.modules[main.__module__]) or FLAGS.main_module_help())
    if takes_config:
        print("\nEvery field of the config can be overridden: --config.train.epochs=3. Fields: imgclf_jax/config.py")
    return 0


def _show_warning(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


def _one_line(error):
    while isinstance(error, KeyError | AttributeError) and error.args:
        error = error.args[0]  # str() of a KeyError is the repr of its message.
    return " ".join(str(error).split())


def _reason(error):
    """`_one_line`, but what ConfigDict says about a field that does not exist, shorter."""
    text = _one_line(error)
    if near := re.search(r'Did you mean "(.+)" instead of "(.+)"\?', text):
        return f"there is no field {near[2]}; did you mean {near[1]}?"
    if isinstance(error, AttributeError | KeyError) and text.strip("'").isidentifier():
        return f"there is no field {text.strip(chr(39))}"
    return text
