"""What each of several videos and images may take of the context.  Pure arithmetic.

Each may take an equal part; what needs less is left alone, and what it leaves over is shared by the others.  So the
longest videos are reduced first, and a small picture beside them not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

_ALLOWANCE_BITS = 6
"""What a fitted video may take is rounded down to so many significant bits, by less than a thirty-second, so that two
questions of about the same length see the same frames, and the second one finds them in the cache."""


def share_tokens(needs: Sequence[int], tokens: int) -> list[int]:
    """Parts of ``tokens`` for media that need so many each, in the same order.

    A part that is less than the need is rounded down (see :data:`_ALLOWANCE_BITS`); the one with the greatest need gets
    all that is left over.
    """
    parts = [0] * len(needs)
    in_order = sorted(range(len(needs)), key=needs.__getitem__)
    for rank, index in enumerate(in_order, start=1):
        fair = tokens // (len(needs) - rank + 1)
        step = 1 << max(0, fair.bit_length() - _ALLOWANCE_BITS)
        is_enough = needs[index] <= fair and rank < len(needs)
        parts[index] = needs[index] if is_enough else fair // step * step
        tokens -= parts[index]
    return parts
