"""Remembers what files hold by their content, so that a known one is not probed again.  It reads no file."""

from __future__ import annotations

from collections import OrderedDict

from tru_vlm.video.media import MediaProbe


class ProbeMemory:
    """Probes by a key over the content, the least recently used go first.

    A probe follows from the content alone, as long as the reader and the ceilings that it was checked against stay the
    same: a memory belongs to one service, which has one of each.

    Args:
        max_entries: how many are kept; each is a few hundred bytes.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._probes: OrderedDict[str, MediaProbe] = OrderedDict()

    def get(self, key: str) -> MediaProbe | None:
        """What is known of the content; None if nothing is."""
        probe = self._probes.get(key)
        if probe is not None:
            self._probes.move_to_end(key)
        return probe

    def put(self, key: str, probe: MediaProbe) -> None:
        """Remember the probe of a content."""
        self._probes[key] = probe
        self._probes.move_to_end(key)
        while len(self._probes) > self._max_entries:
            self._probes.popitem(last=False)
