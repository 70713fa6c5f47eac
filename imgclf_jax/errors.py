"""The one exception that means «the user can fix this»: printed as a line, never as a traceback."""


class UserError(Exception):
    """Bad input. `str(error)` says what is wrong, where, and what to do about it.

    Several problems found at once are given as several lines (`"\\n".join(problems)`); the tools print `told(error)`
    and exit with status 2.
    """


def told(error: UserError) -> str:
    """What the user reads: every line but those that go on with the one before, which are indented, says «error: »."""
    return "\n".join(line if line.startswith(" ") else f"error: {line}" for line in str(error).splitlines())
