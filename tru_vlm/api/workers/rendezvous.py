"""Weighted rendezvous hashing: the same key always picks the same of several choices.  It knows no models.

Every choice gets a score for the key, and the highest wins (Thaler and Ravishankar, "Using name-based mappings to
increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998).  The score is ``-weight / ln(u)`` with ``u`` a
hash in (0, 1) of key and choice, by which a choice wins with the probability of its share of all weights (the
logarithmic method of Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005).  A choice's score
does not depend on the others: changing its weight moves keys only to it, or only away from it, and never between two
others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

_BITS = 53  # as many as a float holds: a half more is never 0 or 1


def weighted_choice(key: str, weights: Mapping[str, float], *, salt: str = "") -> str:
    """The choice for ``key``.

    Args:
        key: what stays with its choice.
        weights: of each choice, above 0; at least one.
        salt: another one gives choices that are independent of these.
    """
    return max(weights, key=lambda choice: _score(key, choice, weights[choice], salt))


def _score(key: str, choice: str, weight: float, salt: str) -> float:
    # Each part is hashed by itself, so that no two triples of texts give the same bytes.
    parts = b"".join(hashlib.sha256(part.encode()).digest() for part in (salt, choice, key))
    number = int.from_bytes(hashlib.sha256(parts).digest()[:8], "big") >> (64 - _BITS)
    return -weight / math.log((number + 0.5) / (1 << _BITS))
