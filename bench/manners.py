"""How every command speaks of mistakes and stops.

In:  what a command raises.   Out: lines on standard error, an exit code.
Knows nothing of what the commands do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def manners(when_stopped: str = "stopped") -> Iterator[None]:
    """The user's mistakes as lines without a traceback; a stop as a stop."""
    from catseg.errors import InputError

    try:
        yield
    except InputError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(when_stopped, err=True)
        raise typer.Exit(130) from None
