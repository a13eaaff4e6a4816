"""``tru-vlm upload``: let the server keep a video, to ask about it many times."""

from __future__ import annotations

from tru_vlm.cli import arguments as a
from tru_vlm.cli.output import printable, size, stderr, tells_errors, upload_progress, write, write_json
from tru_vlm.client import Client


@tells_errors
def upload(
    video: a.File,
    *,
    as_json: a.AsJson = False,
    base_url: a.BaseUrl = a.DEFAULT_BASE_URL,
    api_key: a.ApiKey = None,
) -> None:
    """Let the server keep a video or image; the `video_id` for later questions goes to stdout."""
    with Client(base_url, api_key=api_key) as client, upload_progress() as bar:
        task = bar.add_task("uploading", total=None, visible=False)
        kept = client.upload(
            video, on_upload=lambda sent, total: bar.update(task, completed=sent, total=total, visible=True)
        )
    if as_json:
        write_json(kept)
        return
    stderr.print(printable(f"{kept.filename or video}, {size(kept.size_bytes)}, is kept"), style="dim", markup=False)
    write(kept.id + "\n")
