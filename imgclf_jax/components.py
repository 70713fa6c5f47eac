"""Finds the parts of an experiment: ours by their names, and your own by "module:attribute".

Your modules are looked for in the folders of `look_in` (that of the config file, those of `--parts`, the current one)
and then among the installed packages. No module is ever imported from inside a workdir.
"""

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from imgclf_jax.errors import UserError, unknown

PACKAGE = Path(__file__).resolve().parent
RUN_FILES = ("config.json", "run.json")  # of a workdir
OWN = '"module:name" of your own'  # what the name of a part may be besides one of ours


class _Search:
    """Where modules are looked for, and what is known about them."""

    def __init__(self):
        self.folders: tuple[str, ...] = ()
        self.recorded: Mapping[str, Any] = {}  # the parts of a run, see `sources`
        self.digests: dict[str, str] = {}  # path -> SHA-256 of the source that this process has imported


_search = _Search()


class Call(NamedTuple):
    """How one of your functions is called, to check its options.

    Attributes:
        positional: the number of positional arguments.
        given: the names of the keyword arguments that do not come from the options.
    """

    positional: int = 0
    given: tuple[str, ...] = ()


def look_in(folders: Iterable[Path | str], recorded: Mapping[str, Any] | None = None) -> None:
    """Sets the folders to search, in this order, before the installed packages.

    Args:
        folders: the folders. While a part is imported they come first on Python's path. Afterwards they come last, for
            the modules that your functions import when they are called.
        recorded: the parts of a run as `sources` returned them, for messages.
    """
    kept = dict.fromkeys(str(Path(folder).resolve()) for folder in folders)
    sys.path[:] = [entry for entry in sys.path if entry not in _added]
    _added.clear()
    _search.folders = tuple(kept)
    remember(recorded or {})


_added: set[str] = set()


def folders() -> list[str]:
    """Returns the folders of `look_in`, for the processes that this one starts."""
    return list(_search.folders)


def remember(recorded: Mapping[str, Any]) -> None:
    """Sets the parts of the run whose config is in use, which messages name; see `sources`."""
    _search.recorded = dict(recorded)


def is_own(name: Any) -> bool:
    """Whether a name is "module:attribute"."""
    return isinstance(name, str) and ":" in name


def find(name: str, table: Mapping[str, Any], slot: str) -> Any:
    """Returns the part with a name.

    Args:
        name: a key of `table`, or "module:attribute", where the attribute may have dots.
        table: our parts by name.
        slot: the config field, for messages.

    Raises:
        UserError: there is no such name, module or attribute, or importing the module raises an exception. In that case
            the message has the traceback, from the first line of your own files.
    """
    if is_own(name):
        return _load(name, slot)
    if name not in table:
        raise UserError(unknown(slot, name, table, OWN))
    return table[name]


def problems(name: str, table: Mapping[str, Any], slot: str, options: Mapping[str, Any], call: Call) -> list[str]:
    """Returns one line for each problem with a name and the options of a part of your own; see `find`.

    Args:
        name: see `find`.
        table: see `find`.
        slot: see `find`; "model.name" has its options in "model.options", for example.
        options: the keyword arguments that the config gives.
        call: what it is called with besides.
    """
    try:
        part = find(name, table, slot)
    except UserError as error:
        return [str(error)]
    return option_problems(part, name, option_section(slot), options, call)


def option_section(slot: str) -> str:
    """Returns the section with the options of a slot: "model.name" -> "model.options"."""
    section, _, field = slot.rpartition(".")
    return f"{section}.schedule_options" if field == "schedule" else f"{section}.options"


def option_problems(part: Any, name: str, section: str, options: Mapping[str, Any], call: Call) -> list[str]:
    """Returns one line for each option that does not fit the signature of a part, and for those that are missing."""
    if not callable(part):
        return [f"{name} is {type(part).__name__}, and cannot be called"]
    known = parameters(part)
    if known is None:
        return []
    kinds = inspect.Parameter
    positional = [
        key for key, value in known.items() if value.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    taken = {*positional[: call.positional], *call.given}
    usable = [key for key, value in known.items() if value.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    open_ended = any(value.kind is kinds.VAR_KEYWORD for value in known.values())
    lines = []
    for key in options:
        if key in taken:
            lines.append(f"{section}.{key}: {name} gets {key} from elsewhere; leave it out")
        elif key not in usable and not open_ended:
            rest = [option for option in usable if option not in taken]
            close = difflib.get_close_matches(key, rest, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(rest) or 'none'}"
            lines.append(f"{section}.{key}: {name} has no such option; {hint}")
    for key, value in known.items():
        needed = value.default is kinds.empty and value.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        if needed and key not in taken and key not in options:
            lines.append(f"{section}.{key} is missing: {name} needs it; for example --config.{section}.{key}=...")
    return lines


def known_option_problems(
    owner: str, section: str, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Returns one line for each option that a part of ours does not have, or whose type is not that of its default.

    Args:
        owner: the part in words, such as "model vit".
        section: that of the options, such as "model.options".
        options: those that the config gives.
        defaults: all options of the part, with their defaults. One of type float accepts whole numbers.
    """
    lines = []
    for name, value in options.items():
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, 1)
            rest = f"did you mean {close[0]}?" if close else f"it has {', '.join(defaults) or 'none'}"
            lines.append(f"{section}.{name}: {owner} has no such option; {rest}")
            continue
        expected = type(defaults[name])
        fits = isinstance(value, expected) and not (expected is int and isinstance(value, bool))
        if not fits and not (expected is float and type(value) is int):
            lines.append(f"{section}.{name}={value!r} must be of type {expected.__name__}")
    return lines


def parameters(part: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Returns the parameters of a function or class by name; `None` if they are not known.

    Those that Flax adds to each module, `parent` and `name`, are left out.
    """
    try:
        known = dict(inspect.signature(part).parameters)
    except (TypeError, ValueError):
        return None
    whole = part.func if isinstance(part, functools.partial) else part
    if isinstance(whole, type) and hasattr(whole, "__dataclass_fields__"):
        known = {key: value for key, value in known.items() if key not in ("parent", "name")}
    return known


def explain(error: BaseException) -> str:
    """Returns an exception as text of several lines: its kind, its message and, indented, where your files raised it.

    Frames of this package and of installed packages are left out, except for the innermost one.
    """
    shown = traceback.TracebackException.from_exception(error, compact=True)
    reason = " ".join(str(error).split())
    lines = [f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__]
    frames = list(shown.stack)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    if own:
        last = frames[-1:] if frames[-1] is not own[-1] and not _is_ours(frames[-1].filename) else []
        lines += traceback.StackSummary.from_list([*own, *last]).format()
    elif isinstance(error, SyntaxError):
        lines += list(shown.format_exception_only())[:-1]
    return "\n".join(f"  {line}" if number else line for number, line in enumerate("\n".join(lines).splitlines()))


def sources(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns where parts come from, for the record of a run.

    Args:
        names: "module:attribute" of parts that were found.

    Returns:
        Module -> {path, sha256} for each source file outside of this package and of the installed ones: those of the
        parts, and those that they import, directly or not. For a part from an installed package, {distribution,
        version}. The SHA-256 (hex) is that of the source that this process has imported.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({name.partition(":")[0] for name in names}):
        module = sys.modules.get(name)
        file = _file(module)
        if module is None or file is None or _is_ours(file):
            continue
        if _is_foreign(file):
            top = name.partition(".")[0]
            for distribution in importlib.metadata.packages_distributions().get(top, [top])[:1]:
                found[top] = {"distribution": distribution, "version": _version(distribution)}
            continue
        for each in _with_imports(module):
            path = str(Path(_file(each) or "").resolve())
            found[each.__name__] = {"path": path, "sha256": _digest(path)}
    return dict(sorted(found.items()))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns one line for each source file that differs between two results of `sources`."""
    lines = []
    for module in sorted({*before, *now}):
        old, new = (parts.get(module, {}) for parts in (before, now))
        if old.get("sha256") == new.get("sha256"):
            continue
        file = Path((new.get("sha256") and new.get("path")) or old.get("path") or module).name
        if old.get("sha256") and new.get("sha256"):
            lines.append(f"{file} has changed: SHA-256 {old['sha256'][:12]} -> {new['sha256'][:12]}")
        else:
            lines.append(f"{file} is {'no longer' if old.get('sha256') else 'now'} used")
    return lines


def _load(name, slot):
    module_name, _, path = name.partition(":")
    words = [*module_name.split("."), *path.split(".")]
    if not all(word.isidentifier() for word in words):
        raise UserError(f'{slot}={name!r} is not "module:name"; for example "my_nets:WideResNet"')
    part: Any = _import(module_name, name, slot)
    for word in path.split("."):
        if not hasattr(part, word):
            close = difflib.get_close_matches(word, [key for key in dir(part) if not key.startswith("_")], 1)
            where = _file(sys.modules[module_name]) or module_name
            raise UserError(
                f"{slot}={name!r}: {where} has no {word}" + (f"; did you mean {close[0]}?" if close else "")
            )
        part = getattr(part, word)
    return part


def _import(module_name, name, slot):
    folders = [folder for folder in _search.folders if not _inside_workdir(Path(folder) / "x")]
    before, writes_no_bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path[:] = [*folders, *before]
    # Python matches compiled files by a time in whole seconds: of two edits within a second, it may miss the second.
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        _check_place(module_name, name, slot, folders)
        return _noted(importlib.import_module(module_name))
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (f"{module_name}.").startswith(f"{error.name}."):
            raise UserError(_not_found(module_name, name, slot, folders)) from error
        raise UserError(f"{slot}={name!r}: importing {module_name} failed: {explain(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{slot}={name!r}: importing {module_name} failed: {explain(error)}") from error
    finally:
        sys.dont_write_bytecode = writes_no_bytecode
        sys.path[: len(folders)] = []
        for folder in folders:
            if folder not in sys.path:
                sys.path.append(folder)
                _added.add(folder)


def _check_place(module_name, name, slot, folders):
    """Refuses a module inside a workdir, and one of which this process has imported another file."""
    top = module_name.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top)
    origin = spec.origin if spec and spec.has_location else None
    if origin is None:
        return
    if _inside_workdir(Path(origin).resolve()):
        raise UserError(
            f"{slot}={name!r}: {origin} is in the folder of a run, from which no code is imported; copy it elsewhere "
            "and add --parts=DIR, its new folder"
        )
    loaded = _file(sys.modules.get(top))
    if loaded and Path(loaded).resolve() != Path(origin).resolve():
        raise UserError(
            f"{slot}={name!r}: this process has already imported {top} from {loaded}, and cannot import {origin} too; "
            "rename one of them or use another process"
        )


def _not_found(module_name, name, slot, folders):
    places = ", ".join(folders) or "Python's path"
    file = module_name.replace(".", "/") + ".py"
    line = f"{slot}={name!r}: there is no module {module_name} in {places}, or among the installed packages"
    recorded = _search.recorded.get(module_name) or {}
    if recorded.get("path"):
        folder = Path(recorded["path"]).parents[module_name.count(".")]
        sha = recorded.get("sha256", "?")
        return f"{line}; the run used {recorded['path']} with SHA-256 {sha[:12]}: add --parts={folder}"
    if recorded.get("distribution"):
        return f"{line}; pip install {recorded['distribution']}=={recorded.get('version')}"
    return f"{line}; add --parts=DIR, the folder of {file}, or correct the name"


def _inside_workdir(path: Path) -> bool:
    return any(all((folder / file).is_file() for file in RUN_FILES) for folder in path.parents)


def _noted(module: ModuleType) -> ModuleType:
    """Remembers the digests of the source files of a module that has been imported just now."""
    file = _file(module)
    if file and not _is_foreign(file):
        for each in _with_imports(module):
            _digest(str(Path(_file(each) or "").resolve()))
    return module


def _digest(path):
    if path not in _search.digests:
        _search.digests[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return _search.digests[path]


def _with_imports(module: ModuleType) -> list[ModuleType]:
    """Returns a module and those of your own that it imports, directly or not, as far as they have been imported."""
    found, waiting = {module.__name__: module}, [module]
    while waiting:
        for name in _imported_names(waiting.pop()):
            other = sys.modules.get(name)
            file = _file(other)
            if other is not None and name not in found and file and not _is_foreign(file):
                found[name] = other
                waiting.append(other)
    return list(found.values())


def _imported_names(module):
    try:
        tree = ast.parse(Path(_file(module) or "").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    package = (module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]).split(".")
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parents = {name.rsplit(".", count)[0] for name in names for count in range(1, name.count(".") + 1)}
    above = {module.__name__.rsplit(".", count)[0] for count in range(1, module.__name__.count(".") + 1)}
    return names | parents | above


def _file(module: Any) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and file.endswith(".py") else None


def _is_ours(file: str) -> bool:
    return Path(file).resolve().is_relative_to(PACKAGE)


def _is_foreign(file: str) -> bool:
    """Whether a file belongs to this package, to Python or to an installed package."""
    if file.startswith("<") or _is_ours(file):
        return True
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return path.is_relative_to(library)


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
