"""Draws the architecture page's picture: `python scripts/draw_architecture.py` writes docs/images/architecture.svg.

Every box names the file or folder that does the work; a test says when one is gone, and when the picture is old.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT = 960, 640
INK, MUTED, LINE = "#20242a", "#5c6670", "#8a949e"


@dataclass(frozen=True, slots=True)
class Box:
    """A part: what it is called, what it does, and where its code is."""

    x: int
    y: int
    title: str
    text: str
    path: str
    width: int = 250
    height: int = 62

    def svg(self) -> str:
        """A white box with three lines."""
        lines = [(self.title, 15, "600", INK), (self.text, 12, "400", INK), (self.path, 11, "400", MUTED)]
        texts = "".join(
            f'<text x="{self.x + 10}" y="{self.y + 19 + 18 * i}" font-size="{size}" font-weight="{weight}" '
            f'fill="{fill}">{escape(text)}</text>'
            for i, (text, size, weight, fill) in enumerate(lines)
        )
        box = f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6" fill="#fff" '
        return f'{box}stroke="{LINE}"/>{texts}'


@dataclass(frozen=True, slots=True)
class Area:
    """A process, or the disk."""

    x: int
    y: int
    width: int
    height: int
    title: str
    fill: str

    def svg(self) -> str:
        """A tinted area with its title."""
        return (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="10" fill="{self.fill}"/>'
            f'<text x="{self.x + 14}" y="{self.y + 22}" font-size="13" font-weight="600" fill="{MUTED}">'
            f"{escape(self.title)}</text>"
        )


AREAS = (
    Area(20, 20, 580, 400, "HTTP process", "#eaf1f8"),
    Area(660, 20, 280, 400, "worker process, one per device", "#edf5ea"),
    Area(20, 450, 280, 170, "decode processes", "#f8efe6"),
    Area(320, 450, 620, 170, "STORAGE_DIR", "#f0eef6"),
)
BOXES = (
    Box(35, 55, "Door", "host, origin, key, rates", "tru_vlm/api/security/"),
    Box(35, 135, "Routes", "page, JSON, SSE, WebSocket, OpenAI", "tru_vlm/api/routes/"),
    Box(35, 215, "Intake", "uploads to disk, guarded fetches", "tru_vlm/intake/"),
    Box(35, 335, "Videos", "probe, sampling, frame cache", "tru_vlm/video/service.py"),
    Box(335, 55, "Chats, jobs, kept videos", "ask as everybody does", "tru_vlm/chats/, jobs/, library/"),
    Box(335, 135, "One request", "its stages, its one last event", "tru_vlm/api/pipeline/request_run.py"),
    Box(335, 215, "Plan", "frames and tokens; does it fit?", "tru_vlm/api/pipeline/planning.py"),
    Box(335, 335, "Workers", "the queue, who has the video", "tru_vlm/api/workers/pool.py"),
    Box(675, 55, "Processor", "prompt, patches, positions", "tru_vlm/processor/"),
    Box(675, 155, "Engine", "scheduler, vision, KV cache, sampling", "tru_vlm/engine/"),
    Box(675, 245, "LitAPI", "the four hooks of LitServe", "tru_vlm/api/workers/lit_api.py"),
    Box(675, 335, "Loop", "join, step, send, abort", "tru_vlm/api/workers/lit_loop.py"),
    Box(35, 485, "Decoder", "one file at a time, confined", "tru_vlm/video/decode_child.py"),
    Box(335, 485, "Frames", "shared by path, never copied", "tru_vlm/video/frame_folder.py", 285),
    Box(635, 485, "SQLite and files", "videos, chats, jobs", "tru_vlm/database.py", 290),
)
ARROWS = (
    "M160 117 V135", "M285 166 H335", "M460 117 V135", "M335 186 L285 226", "M460 197 V215", "M335 270 L240 335",
    "M460 277 V335", "M585 358 H675", "M675 380 H585", "M800 335 V307", "M800 245 V217", "M800 155 V117",
    "M250 397 V485", "M285 516 H335",
)  # fmt: skip
NOTES = (
    (592, 348, "submit, abort"),
    (592, 396, "events"),
    (470, 310, "paths and numbers"),
    (292, 312, "frames"),
    (140, 440, "file, frames"),
    (335, 575, "The worker maps frames from disk or /dev/shm: no pixel passes a socket."),
    (335, 597, "What was accepted or kept is there again after kill -9."),
    (35, 575, "Bounded time and memory, no network;"),
    (35, 597, "a hostile file ends a child, not the server."),
)


def draw() -> str:
    """The picture as SVG."""
    marker = (
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
    )
    parts = [area.svg() for area in AREAS] + [box.svg() for box in BOXES]
    parts += [f'<path d="{d}" fill="none" stroke="{INK}" stroke-width="1.4" marker-end="url(#to)"/>' for d in ARROWS]
    parts += [f'<text x="{x}" y="{y}" font-size="12" fill="{MUTED}">{escape(text)}</text>' for x, y, text in NOTES]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    title = "<title>The server's processes, and a request's way through them</title>"
    return "\n".join(
        [head, title, marker, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *parts, "</svg>\n"]
    )


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
