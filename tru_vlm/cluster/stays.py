"""A place in one of the servers for as long as a request lasts, had through Ray Serve.  It carries no bytes of it.

The call that holds the place fails when the server's node is lost, even if the connection to it says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from tru_vlm.cluster.lost import RETRY_SECONDS
from tru_vlm.cluster.replica import Residence
from tru_vlm.cluster.visit import Visit
from tru_vlm.errors import OverloadedError, UnavailableError

logger = logging.getLogger("ray.serve")

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Stay:
    """A place that is held.

    Attributes:
        residence: where.
        lost: ends when the server is lost; never otherwise.
    """

    residence: Residence
    lost: asyncio.Task[None]


class Stays:
    """Gets places.

    Args:
        handle: of the deployment of :class:`~tru_vlm.cluster.replica.ServerReplica`.
        seconds: longest wait for a place.
    """

    def __init__(self, handle: Any, *, seconds: float) -> None:
        self._handle = handle.options(stream=True)
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def stay(self, visit: Visit) -> AsyncIterator[Stay]:
        """Hold a place.

        Raises:
            OverloadedError: too many wait for one.
            UnavailableError: there is none, because no server is ready.
        """
        call, residence = await self._enter(visit)
        lost = asyncio.create_task(_until_lost(call))
        try:
            yield Stay(residence, lost)
        finally:
            lost.cancel()
            call.cancel()

    async def _enter(self, visit: Visit) -> tuple[Any, Residence]:
        for _ in range(_TRIES):
            call = self._handle.stay.remote(visit)
            try:
                async with asyncio.timeout(self._seconds):
                    return call, await anext(call)
            except TimeoutError:
                call.cancel()
                break
            except BackPressureError:
                raise OverloadedError(
                    "All servers are busy; try again in a moment.", retry_after_seconds=RETRY_SECONDS
                ) from None
            except (RayError, RayServeException) as error:  # its replica has just died: another one
                logger.info("no place in a server: %s", type(error).__name__)
            except BaseException:
                call.cancel()
                raise
        raise UnavailableError("No server is ready; try again in a moment.", retry_after_seconds=RETRY_SECONDS)


async def _until_lost(call: Any) -> None:
    """Return when the call fails; one that ends is a request that lasts longer than requests are counted."""
    try:
        async for _ in call:
            pass
    except (RayError, RayServeException) as error:
        logger.warning("a server is lost: %s", type(error).__name__)
        return
    await asyncio.get_running_loop().create_future()
