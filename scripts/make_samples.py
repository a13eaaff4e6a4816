"""Draws the page's sample clips: `python scripts/make_samples.py` writes clips, posters and samples.json.

They go to static/samples/.  The manifest holds the truth of each clip, so that tests can tell a right answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from demo_model.generator import ClipSpec, Event, encode, render_frame  # noqa: E402 - the checkout comes first

SAMPLES_DIR = ROOT / "static" / "samples"
POSTER_SIZE = (320, 240)

#: title, the second that the poster shows, the clip
SAMPLES: dict[str, tuple[str, float, ClipSpec]] = {
    "red-circle": (
        "Red circle",
        1.4,
        ClipSpec(
            events=(Event("red", "circle", "moves left", rgb=(224, 49, 49), size=0.38, travel=0.6),),
            duration_seconds=4.0,
            background=((226, 232, 234), (198, 210, 214)),
        ),
    ),
    "yellow-star": (
        "Yellow star",
        2.6,
        ClipSpec(
            events=(Event("yellow", "star", "grows", rgb=(247, 215, 52), size=0.56, ratio=2.4, rotation_degrees=4.0),),
            duration_seconds=4.0,
            background=((30, 34, 64), (58, 48, 92)),
            gradient_degrees=45.0,
        ),
    ),
    "triangle-then-square": (
        "Two events",
        1.6,
        ClipSpec(
            events=(
                Event("green", "triangle", "moves up", rgb=(43, 176, 84), centre=(0.42, 0.5), size=0.4, travel=0.5),
                Event("blue", "square", "blinks", rgb=(52, 92, 236), centre=(0.58, 0.52), size=0.42),
            ),
            duration_seconds=8.0,
            switch_seconds=4.25,
            background=((244, 238, 226), (232, 221, 203)),
        ),
    ),
    "cross-then-circle": (
        "Two events, longer",
        3.0,
        ClipSpec(
            events=(
                Event("cyan", "cross", "shrinks", rgb=(40, 214, 226), centre=(0.4, 0.5), size=0.54, ratio=2.2),
                Event(
                    "orange", "circle", "moves right", rgb=(250, 152, 40), centre=(0.5, 0.48), size=0.36, travel=0.62
                ),
            ),
            duration_seconds=11.0,
            switch_seconds=6.25,
            background=((38, 30, 36), (62, 42, 50)),
        ),
    ),
}


def main() -> None:
    """Write the clips, their posters and the manifest."""
    SAMPLES_DIR.mkdir(parents=True, exist_ok=True)
    manifest = [_make(name, *sample) for name, sample in SAMPLES.items()]
    (SAMPLES_DIR / "samples.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _make(name: str, title: str, poster_seconds: float, spec: ClipSpec) -> dict[str, object]:
    clip = encode(spec, SAMPLES_DIR / f"{name}.mp4")
    poster = Image.fromarray(render_frame(spec, poster_seconds, POSTER_SIZE[1], POSTER_SIZE[0]))
    poster.save(SAMPLES_DIR / f"{name}.jpg", quality=82, optimize=True)
    sys.stdout.write(f"{clip.name}: {clip.stat().st_size / 1000:.1f} kB\n")
    return {
        "name": name,
        "title": title,
        "duration_seconds": spec.duration_seconds,
        "switch_seconds": spec.switch_seconds,
        "events": [{"colour": e.colour, "shape": e.shape, "action": e.action} for e in spec.events],
    }


if __name__ == "__main__":
    main()
