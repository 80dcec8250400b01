"""The one exception for a user's mistake.

In:  lines of the form `where: what, got; do this`.   Out: an exception that carries them all.
Knows nothing of who prints them.
"""

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a setting.

    `problems` holds one printable line per problem, so that a folder with ten bad files is
    reported in one go. Anything else that is raised is our bug.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        lines = (problems,) if isinstance(problems, str) else tuple(problems)
        self.problems = tuple(make_printable(line) for line in lines)
        super().__init__("\n".join(self.problems))


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def make_printable(line: str) -> str:
    """A line that stays one and moves no cursor, whatever a file's name holds."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
