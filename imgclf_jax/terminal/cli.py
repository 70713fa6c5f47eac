"""The command lines of the tools: flags, config files with overrides, and how a tool starts and ends."""

import faulthandler
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from imgclf_jax import __version__, components
from imgclf_jax.errors import UserError, format_error
from imgclf_jax.terminal import config_file, interrupt, named, streams
from imgclf_jax.terminal.config_file import config_path as config_path

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # Flags that are defined here are listed in the help of the tool that asks for them.
PATH_FLAGS = ("workdir", "rerun", "output", "save_dir", "image", "parts", "profile")  # of all tools
CONFIG_HELP = (
    "The experiment: the name of a config of imgclf_jax, such as cnn, or the path of a Python file with get_config()."
)
cache_warned = False
EXIT_STATUS = """Exit status:
    0        success
    1        training diverged; or only part of the work succeeded, see standard error; or the program has a bug and
             printed a traceback
    2        the command has a mistake, or a file cannot be read or written; standard error says what to do
    3        another process of the job has ended or no longer responds
    128 + N  ended by signal N: 130 Ctrl-C, 143 SIGTERM, 129 the terminal was closed, 141 the output has no reader"""


def parse(argv: list[str]) -> ConfigDict | None:
    """Parses flags and the config file with its overrides.

    Args:
        argv: the command line, program name first. The flags of the tool must be defined before.

    Returns:
        The locked config, or `None` if `--config` was not given.

    Raises:
        UserError: a flag, the config file or an override is wrong.
    """
    argv, options = config_file.split_options(argv)
    path = config_path(argv)
    if path:  # Names become paths.
        argv = [argv[0], f"--config={path}", *config_file.without_config(argv[1:])]
    if "config" not in FLAGS:
        config_flags.DEFINE_config_file("config", None, CONFIG_HELP, FLAGS, sys_argv=argv)
    if options and path is None:
        raise UserError(f"--config.{next(iter(options))} has no effect without --config")
    if path == "":
        raise UserError("--config has no value; for example --config=cnn")
    if path is not None:
        config_file.check(path)
    with config_file.loading(path):
        rest = FLAGS(argv)[1:]
        config = FLAGS["config"].value
        hasattr(config, "seed")  # An OSError in get_config() is raised only when the config is accessed.
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    _expand_paths()
    look_for_parts(path)
    if path is None:
        return None
    if isinstance(config, ConfigDict):
        config_file.set_options(config, options, path)
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}; return a config made by default()")
    return config


def parse_flags(argv: list[str], positional: bool = False) -> list[str]:
    """Parses the flags of a tool that takes no `--config`.

    Args:
        argv: the command line, program name first. The flags of the tool must be defined before.
        positional: whether positional arguments are allowed.

    Returns:
        The positional arguments.

    Raises:
        UserError: a flag is unknown or has an invalid value, or a positional argument is not allowed.
    """
    try:
        rest = FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(config_file.one_line(error)) from error
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    _expand_paths()
    look_for_parts()
    return rest


def define_run() -> None:
    """Defines the flags of the tools that use the network of a run."""
    define_parts()
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_enum(
        "checkpoint",
        "reported",
        ["reported", "last", "best"],
        "The checkpoint to use; reported: the one whose test accuracy was printed.",
    )


def define_parts() -> None:
    """Defines the flag of the tools that import parts of one's own."""
    flags.DEFINE_multi_string(
        "parts",
        [],
        'A folder with modules of your own, which the config names like "my_nets:WideResNet". They are also looked for '
        "in the folder of the config file, in the current folder and among the installed packages.",
    )


def look_for_parts(path: str | None = None) -> None:
    """Sets the folders of modules of one's own, after the flags have been parsed.

    Args:
        path: the value of `--config`, if it was given.
    """
    given = list(FLAGS["parts"].value or ()) if "parts" in FLAGS else []
    for folder in given:
        if not Path(folder).is_dir():
            raise UserError(f"--parts={folder} is not a folder")
    components.look_in([*([Path(path).resolve().parent] if path else []), *given, Path.cwd()])


def _expand_paths():
    """Expands `~`, because the shell does not expand it in `--flag=~/x`."""
    for name in PATH_FLAGS:
        if name in FLAGS and (value := FLAGS[name].value):
            expand = os.path.expanduser
            FLAGS[name].value = [expand(item) for item in value] if isinstance(value, list) else expand(value)


def begin_work(needs_stdout: bool = True) -> None:
    """Marks the end of command-line parsing and imports; see `interrupt.begin_work`.

    Args:
        needs_stdout: whether the tool writes its result to standard output. If not, it continues when standard output
            is lost.
    """
    interrupt.begin_work()
    if not needs_stdout:
        streams.survive()


def run_tool(main: Callable[[list[str]], int], takes_config: bool = True) -> int:
    """Calls the `main(argv)` of a tool and returns its exit status. Every failure prints a message or a traceback.

    Args:
        main: see `imgclf_jax.main.main`.
        takes_config: whether the tool has `--config`; `--help` then explains overrides.
    """
    interrupt.install()
    streams.prepare()
    streams.ignore_in_threads()
    faulthandler.enable(file=2)  # If native code crashes, show the Python stack.
    warnings.simplefilter("default", UserWarning)
    warnings.showwarning = show_warning
    sys.unraisablehook = _show_unraisable
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax also logs tracebacks of the exceptions that it raises.
    logging.getLogger("jax").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # It also logs exceptions that Orbax raises.
    argv = sys.argv
    try:
        if "--version" in argv[1:]:
            print(f"imgclf_jax {__version__}")
            status = 0
        elif {"--help", "-h", "-help"} & set(argv[1:]):
            status = _help(main, takes_config)
        else:
            status = main(argv)
    except UserError as error:
        print(format_error(error), file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        status, line = interrupt.ending(error)
        print(line, file=sys.stderr)
    except streams.OutputLost:
        status = 0  # `streams.status` determines the exit status.
    except SystemExit as error:  # Our tools end by returning, so a library called it.
        print(f"error: a library ended the program with sys.exit({error.code!r})", file=sys.stderr)
        status = 1
    except MemoryError as error:
        print(f"error: out of memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        status = 2
    interrupt.end_work()
    return streams.status() or status


def _show_unraisable(unraisable):
    if isinstance(unraisable.exc_value, interrupt.Stopped):  # It was raised in a callback of the garbage collector.
        interrupt.raise_later(unraisable.exc_value.number)
        return
    if streams.is_about_tensorboard(unraisable.exc_value):
        return
    # After a checkpoint cannot be written, its other writes, in C++, fail to report their own failure to a closed event
    # loop. After it cannot be read, its other reads are abandoned, each with a message of about a thousand lines.
    abandoned = getattr(getattr(unraisable.object, "cr_code", None), "co_filename", "")
    if str(unraisable.exc_value) != "Event loop is closed" and "orbax" not in Path(abandoned).parts:
        sys.__unraisablehook__(unraisable)


def _help(main, takes_config):
    print(sys.modules[main.__module__].__doc__)
    sys.modules[main.__module__].define_flags()
    print(FLAGS.module_help(sys.modules[main.__module__]) or FLAGS.main_module_help())
    if takes_config:
        print("\nEvery config field can be overridden: --config.train.epochs=3. All fields are explained in")
        print(named.PACKAGE / "config.py")
    print(f"\n--version prints the version.\n\n{EXIT_STATUS}")
    return 0


def show_warning(message, category, filename, lineno, file=None, line=None):
    """Prints a warning as one line; takes the place of `warnings.showwarning`."""
    text = str(message)
    if "persistent compilation cache" in text:
        text = _cache_warning(text)
    if text and issubclass(category, UserWarning):
        print(f"warning: {text}", file=sys.stderr)


def _cache_warning(text):
    """One line about an unusable compilation cache, then empty strings: JAX warns for every program."""
    global cache_warned
    # Programs that call oneDNN cannot be kept (JAX 0.12). They compile in seconds.
    if cache_warned or "std::bad_alloc" in text:
        return ""
    cache_warned = True
    import jax  # It is imported already: the warning comes from it.

    folder = jax.config.values["jax_compilation_cache_dir"]
    reason = text.partition("': ")[2][:200] or text
    return (
        f"the compilation cache {folder} cannot be used ({reason}): programs are recompiled at each start. Free some "
        "space there, delete it, or choose another folder with the environment variable JAX_COMPILATION_CACHE_DIR"
    )
