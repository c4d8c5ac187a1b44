"""What `with` does for a session."""

from __future__ import annotations

from typing import TypeVar

_T = TypeVar("_T", bound="Closing")  # `typing.Self` begins with Python 3.11


class Closing:
    """Closes itself at the end of a `with` block, which is given the object itself."""

    def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
