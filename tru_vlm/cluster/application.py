"""The Ray Serve application: gateways before servers.  ``serve run tru_vlm.cluster.application:build`` starts it.

What can be said of it are the fields of :class:`ClusterOptions`, the ``args`` of a Serve configuration; how each server
is, its own settings say, which come from the environment of Ray's nodes.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from tru_vlm.cluster.body import BodyBounds
from tru_vlm.cluster.gateway import Gateway
from tru_vlm.cluster.replica import ServerReplica
from tru_vlm.cluster.router import VideoRouter
from tru_vlm.cluster.stays import Stays
from tru_vlm.settings import Settings, load_settings

_LIGHT_REQUESTS = 32
"""Room beside questions, for what costs next to nothing: pages, health, frames."""

_FORM_BYTES = 64 << 20
_FAREWELL_SECONDS = 45.0
_GATEWAY_REQUESTS = 4096
_METRICS_SECONDS = 10
"""How often Serve is told of the requests."""


class ClusterOptions(BaseModel):
    """What an operator says of the cluster."""

    model_config = ConfigDict(extra="forbid")

    min_servers: Annotated[int, Field(ge=1)] = Field(1, description="Fewest servers.")
    max_servers: Annotated[int, Field(ge=1)] = Field(1, description="Most servers.")
    target_requests: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Requests, running and waiting, per server, above which servers are added and below which they are "
        "removed; by default as many as one runs at once.",
    )
    look_back_seconds: Annotated[float, Field(gt=_METRICS_SECONDS)] = Field(
        30.0, description="Over how long their number is averaged; the delays come on top."
    )
    upscale_delay_seconds: Annotated[float, Field(ge=0)] = Field(30.0, description="How long there must be more.")
    downscale_delay_seconds: Annotated[float, Field(ge=0)] = Field(600.0, description="How long there must be fewer.")
    gpus_per_server: Annotated[int, Field(ge=0)] = Field(0, description="Cards of one server; 0 computes on the CPU.")
    cpus_per_server: Annotated[float, Field(gt=0)] = Field(4.0, description="Cores of one server.")
    server_resources: dict[str, float] = Field(default_factory=dict, description="Ray's custom resources of a server.")
    gateways: Annotated[int, Field(ge=1)] = Field(1, description="How many processes pass requests on.")
    gateway_resources: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources of a gateway."
    )
    start_seconds: Annotated[float, Field(gt=0)] = Field(3600.0, description="Longest time until a server is ready.")
    place_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="How long a request waits for a server that takes it, before it is told that there is none."
    )
    health_seconds: Annotated[float, Field(gt=0)] = Field(5.0, description="Between two looks at each server.")
    settings: dict[str, str] = Field(
        default_factory=dict,
        description="Settings of the servers by their variables' names, before the environment of the nodes. Ray's "
        "dashboard shows them: secrets belong into the environment.",
    )

    @model_validator(mode="after")
    def _has_order(self) -> ClusterOptions:
        if self.max_servers < self.min_servers:
            raise ValueError(
                f"max_servers is {self.max_servers}; at least min_servers, {self.min_servers}, is accepted"
            )
        return self


class GatewayReplica:
    """Serve's ingress.

    Args:
        servers: handle of the servers' deployment.
        bounds: of requests' bodies.
        place_seconds: longest wait for a place in a server.
    """

    def __init__(self, servers: Any, bounds: BodyBounds, place_seconds: float) -> None:
        self._gateway = Gateway(Stays(servers, seconds=place_seconds), bounds)

    def __serve_build_asgi_app__(self) -> Gateway:
        """Called by Serve."""
        return self._gateway


def build(options: ClusterOptions) -> Application:
    """The application.

    Raises:
        SettingsError: naming the setting that cannot be used.
    """
    settings = load_settings(None, **{name.lower(): value for name, value in options.settings.items()})
    servers = _servers(options, settings)
    bounds = BodyBounds(
        max_json_bytes=settings.max_json_bytes,
        max_bytes=max(settings.max_json_bytes, settings.max_upload_bytes + _FORM_BYTES),
        idle_seconds=settings.client_timeout_seconds,
    )
    gateways = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="gateway",
        num_replicas=options.gateways,
        max_ongoing_requests=_GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": 0, "resources": options.gateway_resources},
        graceful_shutdown_timeout_s=settings.drain_seconds + _FAREWELL_SECONDS,
    )
    application: Application = gateways.bind(servers, bounds, options.place_seconds)
    return application


def _servers(options: ClusterOptions, settings: Settings) -> Application:
    rows = settings.max_batch_size * settings.workers_per_device * max(1, options.gpus_per_server)
    deployment = serve.deployment(
        ServerReplica,
        name="server",
        # A server tells those who wait in it how many go first, and refuses the next one: all that it takes may enter.
        max_ongoing_requests=rows + settings.max_queued_requests + _LIGHT_REQUESTS,
        max_queued_requests=settings.max_queued_requests,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_servers,
            max_replicas=options.max_servers,
            initial_replicas=options.min_servers,
            target_ongoing_requests=options.target_requests or rows,
            look_back_period_s=options.look_back_seconds,
            upscale_delay_s=options.upscale_delay_seconds,
            downscale_delay_s=options.downscale_delay_seconds,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=VideoRouter, request_router_kwargs={"max_lead": max(1, rows // 2)}
        ),
        ray_actor_options={
            "num_cpus": options.cpus_per_server,
            "num_gpus": options.gpus_per_server,
            "resources": options.server_resources,
        },
        health_check_period_s=options.health_seconds,
        graceful_shutdown_timeout_s=settings.drain_seconds + _FAREWELL_SECONDS,
    )
    application: Application = deployment.bind(
        options.settings,
        start_seconds=options.start_seconds,
        stop_seconds=settings.drain_seconds + _FAREWELL_SECONDS,
        stay_seconds=settings.request_timeout_seconds,
    )
    return application
