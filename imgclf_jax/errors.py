"""The exception for errors that the user can fix: printed as one line, never as a traceback."""


class UserError(Exception):
    """Bad input. `str(error)` says what is wrong, where, and how to fix it.

    Several problems are reported together, one per line (`"\\n".join(problems)`). The tools print
    `format_error(error)` and exit with status 2.
    """


def format_error(error: UserError) -> str:
    """The message as printed: each line is prefixed with "error: ", except indented continuation lines."""
    return "\n".join(line if line.startswith(" ") else f"error: {line}" for line in str(error).splitlines())
