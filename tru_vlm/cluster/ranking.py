"""Which server a request goes to, and which is next.  It knows neither Ray nor requests.

Every gateway comes to the same answer without asking the others: the home of a key is found by rendezvous hashing, so
a server that comes or goes moves only its own share of the keys.  Nobody waits for a home that is busier than the
least busy server by more than ``max_lead`` requests: the key's next home takes it, always the same one, so a video
that everybody asks about spreads over as many servers as it needs.
"""

from __future__ import annotations

from collections.abc import Mapping

from tru_vlm.api.workers.rendezvous import weighted_choice
from tru_vlm.cluster.visit import Visit


def ranked(visit: Visit, loads: Mapping[str, int], *, max_lead: int) -> list[list[str]]:
    """Servers by rank; within one, the least busy.

    Args:
        visit: what the request says.
        loads: requests that each server has, by its name.
        max_lead: see the module's docstring.
    """
    if visit.server is not None and visit.server in loads:
        return [[visit.server]]
    candidates = {name: load for name, load in loads.items() if name not in visit.avoided} or dict(loads)
    if not candidates:
        return []
    if visit.key is None:
        return [list(candidates)]
    least = min(candidates.values())
    near = {name: 1.0 for name, load in candidates.items() if visit.is_fixed or load - least <= max_lead}
    home = weighted_choice(visit.key, near)
    others = [name for name in candidates if name != home]
    return [[home], others] if others else [[home]]
