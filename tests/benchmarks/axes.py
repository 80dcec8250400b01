"""The settings that networks are timed at: a few by default, the whole product with `-m wide`.

In:  sizes.   Out: parameters for pytest.
Knows nothing of what is timed.
"""

from collections.abc import Iterable
from itertools import product

import pytest
from entrants import ALL
from work import Size

WIDE = [Size(*values) for values in product((8, 16, 32), (96, 128, 256), (1, 2, 4, 8))]


def over(default: Iterable[Size], names: Iterable[str]) -> pytest.MarkDecorator:
    """(size, name, names): each contestant of `names` at the default sizes; marked wide, all at all other sizes."""
    names, default = tuple(names), tuple(default)
    few = [_make_param(size, name, names) for size in default for name in names]
    wide = [_make_param(size, name, ALL, pytest.mark.wide) for size in WIDE if size not in default for name in ALL]
    return pytest.mark.parametrize(("size", "name", "names"), few + wide)


def _make_param(size: Size, name: str, names: tuple[str, ...], *marks: pytest.MarkDecorator):
    return pytest.param(size, name, names, marks=marks, id=f"{size}, {name}")
