"""The exceptions that end a run in one sentence instead of a traceback."""


class BadInput(ValueError):
    """Raised for anything a user can mend: its message is one sentence that names the field or file
    to change.
    """


class Unrecoverable(RuntimeError):
    """Raised where the same would happen again after a restart, so that none is tried: exit code 1.

    Its message is one sentence that says what happened and where.
    """


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
