"""The one exception that means "your input is wrong": the command line turns it into one sentence
and exit code 2.
"""


class BadInput(ValueError):
    """Raised for anything a user can mend: its message is one sentence that names the field or file
    to change.
    """
