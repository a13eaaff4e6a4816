"""What routes are built from.  It builds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.api.keys import Keyring
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stopping import Drain
from tru_vlm.api.stored_chats.turns import Chats
from tru_vlm.settings import Settings
from tru_vlm.telemetry.metrics import Metrics
from tru_vlm.telemetry.spans import Tracing

if TYPE_CHECKING:
    from tru_vlm.api.mcp.endpoint import McpEndpoint


@dataclass(frozen=True, slots=True)
class AppContext:
    """The parts of one server, as its routes take them."""

    settings: Settings
    service: InferenceService
    chats: Chats
    jobs: JobService
    keyring: Keyring
    metrics: Metrics
    tracing: Tracing
    mcp: McpEndpoint | None
    drain: Drain
