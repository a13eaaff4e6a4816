"""Places bound how many things are done at once.  They know nothing of what is done."""

from __future__ import annotations

from tru_vlm.errors import OverloadedError

_RETRY_AFTER_SECONDS = 2.0


class Places:
    """A bounded number of things that may be done at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_taken = 0

    def check(self, *, leaving: int = 0) -> None:
        """Whether one is free, beside those that are to be left to others.

        Raises:
            OverloadedError: if none is.
        """
        if self.num_taken >= self.number - leaving:
            raise OverloadedError(
                f"All {self.number} places are taken; try again in a moment.", retry_after_seconds=_RETRY_AFTER_SECONDS
            )

    def take(self, *, is_background: bool = False) -> None:
        """Take one; work in the background leaves the last half to those who wait for their answers.

        Raises:
            OverloadedError: if none is free.
        """
        self.check(leaving=self.number // 2 if is_background else 0)
        self.num_taken += 1

    def give_back(self) -> None:
        """Give one back."""
        self.num_taken -= 1
