"""The exception for errors that the user can fix: printed as one line, never as a traceback. Words for such lines."""

import difflib
import shlex
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Bad input. `str(error)` says what is wrong, where, and how to fix it.

    Several problems are reported together, one per line (`"\\n".join(problems)`). The tools print
    `format_error(error)` and exit with status 2.
    """


def flag(field: str, value: Any) -> str:
    """Returns what to type to give a config field a value: `--config.model.head=softmax`."""
    return f"--config.{field}={shlex.quote(str(value))}"


def unknown(field: str, value: Any, choices: Iterable[str], more: str = "") -> str:
    """Returns the line about a value that is not one of the choices, with the flag that gives the closest one.

    Args:
        field: the config field.
        value: its value.
        choices: the values that it may have.
        more: what else it may be, such as `"module:name" of your own`.
    """
    others = [str(choice) for choice in choices]
    first = (difflib.get_close_matches(str(value), others, 1) or others)[0]
    others.remove(first)
    listed = [*others, more] if more else others
    return f"{field}={value!r} is unknown; give {flag(field, first)}" + (f" (or {', '.join(listed)})" if listed else "")


def format_error(error: UserError) -> str:
    """The message as printed: each line is prefixed with "error: ", except indented continuation lines."""
    return "\n".join(line if line.startswith(" ") else f"error: {line}" for line in str(error).splitlines())
