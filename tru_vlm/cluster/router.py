"""Ray Serve's request router that keeps a video's requests together.  How it chooses is ``ranking.py``'s business."""

from __future__ import annotations

from ray.serve.request_router import LocalityMixin, MultiplexMixin, PendingRequest, RequestRouter, RunningReplica

from tru_vlm.cluster.ranking import ranked
from tru_vlm.cluster.visit import Visit


class VideoRouter(LocalityMixin, MultiplexMixin, RequestRouter):
    """Ranks replicas for a call whose first argument is a :class:`~tru_vlm.cluster.visit.Visit`."""

    _max_lead = 0

    def initialize_state(self, *, max_lead: int) -> None:
        """Called by Serve, with ``request_router_kwargs``."""
        self._max_lead = max_lead

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One choice; Serve takes the first rank in which a replica has room."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        arguments = pending_request.args if pending_request is not None else ()
        visit = arguments[0] if arguments and isinstance(arguments[0], Visit) else Visit()
        cache = self.replica_queue_len_cache
        loads = {name: cache.get(replica.replica_id) or 0 for name, replica in by_name.items()}
        return [[by_name[name] for name in rank] for rank in ranked(visit, loads, max_lead=self._max_lead)]
