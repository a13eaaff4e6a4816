"""The header by which a client says which requests belong together.

What it does: :mod:`tru_vlm.api.pipeline.models`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import Header

from tru_vlm.api.inference_request import InferenceRequest

RoutingKey = Annotated[
    str | None,
    Header(
        alias="X-Routing-Key",
        min_length=1,
        max_length=512,
        description="Where `model` is an alias: requests with the same key are answered by the same of its models. "
        "Without it, those about the same video are.",
    ),
]


def with_routing_key(request: InferenceRequest, routing_key: str | None) -> InferenceRequest:
    """The request with the header's key, if there is one; it goes before what the body says."""
    return request if routing_key is None else dataclasses.replace(request, routing_key=routing_key)
