"""``tru-vlm models``: what the server offers."""

from __future__ import annotations

from rich.table import Table

from tru_vlm.cli import arguments as a
from tru_vlm.cli.output import stdout, tells_errors, write_json
from tru_vlm.client import Client


@tells_errors
def models(*, as_json: a.AsJson = False, base_url: a.BaseUrl = a.DEFAULT_BASE_URL, api_key: a.ApiKey = None) -> None:
    """List the models that the server offers."""
    with Client(base_url, api_key=api_key) as client:
        found = client.models()
    if as_json:
        write_json(found)
        return
    table = Table("model", "context (tokens)")
    for model in found:
        table.add_row(model.id, "" if model.max_model_len is None else str(model.max_model_len))
    stdout.print(table)
