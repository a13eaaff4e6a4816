"""Draws and encodes the clips that the demo model knows: coloured shapes that do one thing, or one thing after another.

Everything here is a pure function of a `ClipSpec`, which is also the ground truth of the clip.
`clip_spec(seed)` makes a
random one; tests and sample clips can write their own::

    spec = ClipSpec(events=(Event("red", "circle", "moves left"), Event("blue", "star", "blinks")), switch_seconds=3.0)
    encode(spec, "clip.mp4")

This module does not know the model, its prompts or torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

#: Typical RGB values of each colour name; a clip's colour is a blend of them plus jitter.
COLOURS: dict[str, tuple[Rgb, ...]] = {
    "red": ((220, 30, 30), (255, 0, 0), (200, 20, 40)),
    "green": ((40, 180, 70), (0, 128, 0), (0, 255, 0)),
    "blue": ((40, 80, 230), (0, 0, 255), (30, 60, 200)),
    "yellow": ((245, 220, 40), (255, 255, 0)),
    "orange": ((245, 130, 30), (255, 165, 0), (255, 128, 0)),
    "purple": ((150, 40, 190), (128, 0, 128), (160, 32, 240)),
    "cyan": ((40, 210, 225), (0, 255, 255)),
    "white": ((235, 235, 235), (255, 255, 255)),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
ACTIONS = ("moves left", "moves right", "moves up", "moves down", "stands still", "grows", "shrinks", "blinks")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}

RESOLUTIONS: tuple[tuple[int, int], ...] = (
    (320, 240),
    (640, 480),
    (426, 240),
    (640, 360),
    (1280, 720),
    (256, 256),
    (240, 320),
)
RESOLUTION_WEIGHTS = (0.32, 0.32, 0.08, 0.08, 0.05, 0.08, 0.07)
SOURCE_FPS: tuple[float, ...] = (10.0, 12.0, 15.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0)
PRESETS = ("ultrafast", "veryfast", "medium")
MIN_CONTRAST = 130.0  # least RGB distance between an object and its background


@dataclass(frozen=True)
class Event:
    """One object doing one action. Lengths are fractions of the frame (x, travel in x: of its width; the rest: of
    its height).

    colour, shape, action: names out of COLOURS, SHAPES, ACTIONS; ValueError otherwise.
    rgb: exact colour; None takes the first typical value of the name.
    centre: the object's centre (x, y); for a moving object the middle of its path.
    size: diameter; for grows/shrinks the larger one.
    travel: how far a moving object gets.
    ratio: larger over smaller diameter for grows/shrinks.
    blink_seconds: how long a blinking object is on, then off.
    rotation_degrees: the shape's rotation.
    """

    colour: str
    shape: str
    action: str
    rgb: Rgb | None = None
    centre: tuple[float, float] = (0.5, 0.5)
    size: float = 0.4
    travel: float = 0.6
    ratio: float = 2.2
    blink_seconds: float = 0.55
    rotation_degrees: float = 0.0

    def __post_init__(self) -> None:
        for field, accepted in (("colour", tuple(COLOURS)), ("shape", SHAPES), ("action", ACTIONS)):
            if getattr(self, field) not in accepted:
                raise ValueError(f"{field} {getattr(self, field)!r} is unknown; accepted: {', '.join(accepted)}")

    @property
    def fill(self) -> Rgb:
        """The RGB value that is drawn."""
        return self.rgb or COLOURS[self.colour][0]


@dataclass(frozen=True)
class ClipSpec:
    """A whole clip: what happens (the truth) and how it looks.

    events: one or two; at `switch_seconds` (default: half of the clip) the first object vanishes and the second
    appears.
    background: RGB at both ends of a linear gradient that runs at `gradient_degrees`.
    noise: standard deviation of the sensor noise in 8-bit levels.
    crf, preset: libx264 settings. seed: of the noise only.
    """

    events: tuple[Event, ...]
    duration_seconds: float = 6.0
    switch_seconds: float | None = None
    width: int = 320
    height: int = 240
    fps: float = 25.0
    background: tuple[Rgb, Rgb] = ((24, 26, 32), (44, 48, 56))
    gradient_degrees: float = 90.0
    noise: float = 2.0
    crf: int = 23
    preset: str = "veryfast"
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.events) not in (1, 2):
            raise ValueError(f"a clip has one or two events; got {len(self.events)}")
        if len(self.events) == 2 and self.switch_seconds is None:
            object.__setattr__(self, "switch_seconds", self.duration_seconds / 2)

    @property
    def num_frames(self) -> int:
        """How many frames the encoded clip has."""
        return max(1, round(self.duration_seconds * self.fps))

    def event_index(self, seconds: float) -> int:
        """Which event is under way at a time: 0 or 1."""
        return int(self.switch_seconds is not None and seconds >= self.switch_seconds - 1e-9)

    def span(self, index: int) -> tuple[float, float]:
        """Begin and end of an event in seconds."""
        switch = self.duration_seconds if self.switch_seconds is None else self.switch_seconds
        return (0.0, switch) if index == 0 else (switch, self.duration_seconds)


@dataclass(frozen=True)
class ObjectState:
    """The object at one instant: its event, whether it is on, centre (fractions of width, height), diameter (of
    height).
    """

    event_index: int
    visible: bool
    x: float
    y: float
    size: float


def object_state(spec: ClipSpec, seconds: float) -> ObjectState:
    """Where the object is, how large, and whether it is on, at a time in seconds."""
    index = spec.event_index(seconds)
    event, (begin, end) = spec.events[index], spec.span(index)
    elapsed = seconds - begin
    progress = min(max(elapsed / max(end - begin, 1e-6), 0.0), 1.0)
    (x, y), size, visible = event.centre, event.size, True
    if event.action in DIRECTIONS:
        dx, dy = DIRECTIONS[event.action]
        x, y = x + dx * event.travel * (progress - 0.5), y + dy * event.travel * (progress - 0.5)
    elif event.action in ("grows", "shrinks"):
        smallness = 1.0 - progress if event.action == "grows" else progress
        size = size * (1.0 - smallness * (1.0 - 1.0 / event.ratio))
    elif event.action == "blinks":
        visible = int(elapsed / event.blink_seconds + 1e-6) % 2 == 0
    return ObjectState(index, visible, x, y, size)


def _outline(shape: str) -> NDArray[np.float64]:
    """The polygon of a shape around (0, 0), y down, for a diameter of 1: (points, 2)."""
    if shape == "circle":
        angles = np.arange(72) * (2 * math.pi / 72)
        return 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        return 0.45 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
    if shape == "triangle":
        return 0.5 * np.array([(0, -1.1), (1.0, 0.8), (-1.0, 0.8)], dtype=np.float64)
    if shape == "star":
        angles = np.arange(10) * (math.pi / 5) - math.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 0.56, 0.235)
        return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    arm, tip = 0.16, 0.5
    corners = [(-arm, -tip), (arm, -tip), (arm, -arm), (tip, -arm), (tip, arm), (arm, arm)]
    corners += [(arm, tip), (-arm, tip), (-arm, arm), (-tip, arm), (-tip, -arm), (-arm, -arm)]
    return np.array(corners, dtype=np.float64)


def _draw(frame: NDArray[np.int16], event: Event, state: ObjectState) -> None:
    """Paints the object, antialiased, into frame (h, w, 3) in place."""
    height, width = frame.shape[:2]
    turn = math.radians(event.rotation_degrees)
    rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
    points = _outline(event.shape) @ rotation * (state.size * height) + (state.x * width, state.y * height)
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, (width, height))
    if right <= left or bottom <= top:
        return
    fine = 4 if max(right - left, bottom - top) < 160 else 2
    mask = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in (points - (left, top)) * fine - 0.5], fill=255)
    alpha = np.asarray(mask.reduce(fine), dtype=np.int32)[..., None]
    region = frame[top:bottom, left:right]
    region += ((np.array(event.fill, dtype=np.int32) - region) * alpha // 255).astype(np.int16)


@lru_cache(maxsize=4)
def _backdrop(spec: ClipSpec, height: int, width: int) -> NDArray[np.int16]:
    """The empty scene: (h, w, 3)."""
    angle = math.radians(spec.gradient_degrees)
    ys, xs = np.mgrid[0:height, 0:width]
    along = xs / max(width - 1, 1) * math.cos(angle) + ys / max(height - 1, 1) * math.sin(angle)
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    first, second = (np.array(colour, dtype=np.float64) for colour in spec.background)
    scene: NDArray[np.int16] = np.rint(first + along[..., None] * (second - first)).astype(np.int16)
    return scene


@lru_cache(maxsize=4)
def _noise_tile(spec: ClipSpec, height: int, width: int) -> NDArray[np.int16]:
    """Noise somewhat larger than the frame, so that each frame can cut another part: (h + 32, w + 32, 3)."""
    rng = np.random.default_rng(spec.seed)
    noise = rng.standard_normal((height + 32, width + 32, 3), dtype=np.float32) * spec.noise
    tile: NDArray[np.int16] = np.rint(noise).astype(np.int16)
    return tile


def render_frame(
    spec: ClipSpec, seconds: float, height: int | None = None, width: int | None = None
) -> NDArray[np.uint8]:
    """The picture at a time, at any size (default: the clip's own): uint8 RGB (h, w, 3)."""
    height, width = height or spec.height, width or spec.width
    frame = _backdrop(spec, height, width).copy()
    state = object_state(spec, seconds)
    if state.visible:
        _draw(frame, spec.events[state.event_index], state)
    if spec.noise > 0:
        top, left = (int(step) for step in np.random.default_rng((spec.seed, round(seconds * 1e4))).integers(0, 33, 2))
        frame += _noise_tile(spec, height, width)[top : top + height, left : left + width]
    return np.clip(frame, 0, 255).astype(np.uint8)


def encode(spec: ClipSpec, path: str | Path) -> Path:
    """Writes the clip as an H.264 file (container by suffix, mp4 as a rule) and returns its path. Width and height
    must be even.
    """
    import av

    path = Path(path)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(spec.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, "yuv420p"
        stream.options = {"crf": str(spec.crf), "preset": spec.preset}
        for index in range(spec.num_frames):
            picture = av.VideoFrame.from_ndarray(render_frame(spec, index / spec.fps), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def sampled_indices(num_frames: int, source_fps: float, sample_fps: float = 2.0) -> list[int]:
    """Which frames the product looks at: an even number of at least 4 (if there are 4), spread over the whole clip."""
    wanted = min(max(num_frames / source_fps * sample_fps, 4), num_frames)
    count = max(int(wanted // 2 * 2), 1)
    return [int(index) for index in np.rint(np.linspace(0, num_frames - 1, count, dtype=np.float32))]


def is_observable(spec: ClipSpec, seconds: list[float]) -> bool:
    """Whether frames at these times show what happens: two or more of each event, and a blink both on and off."""
    states = [object_state(spec, second) for second in seconds]
    for index, event in enumerate(spec.events):
        seen = [state.visible for state in states if state.event_index == index]
        if len(seen) < 2 or not any(seen) or (event.action == "blinks" and all(seen)):
            return False
    return True


def _random_rgb(rng: np.random.Generator, colour: str) -> Rgb:
    """A blend of the colour's typical values, a little lighter or darker, with jitter per channel."""
    anchors = np.array(COLOURS[colour], dtype=np.float64)
    blend = rng.dirichlet(np.full(len(anchors), 0.6)) @ anchors
    value = np.clip(blend * rng.uniform(0.93, 1.05) + rng.uniform(-10, 10, 3), 0, 255)
    return int(value[0]), int(value[1]), int(value[2])


def _random_background(rng: np.random.Generator) -> tuple[Rgb, Rgb]:
    """Plain black, white or grey now and then; else two related tints."""
    if rng.random() < 0.25:
        grey = int(rng.choice([0, 16, 40, 90, 128, 200, 255]))
        return (grey, grey, grey), (grey, grey, grey)
    level = rng.uniform(0, 235)
    first = np.clip(level + rng.uniform(-35, 35, 3), 0, 255)
    second = np.clip(first + rng.uniform(-30, 30) + rng.uniform(-12, 12, 3), 0, 255)
    return tuple(int(v) for v in first), tuple(int(v) for v in second)  # type: ignore[return-value]


def _random_centre(rng: np.random.Generator, size: float, aspect: float) -> tuple[float, float]:
    """A place where an object of this diameter is (nearly) all inside; aspect is width / height."""
    half_x, half_y = min(0.46 * size / aspect, 0.5), min(0.46 * size, 0.5)
    return float(rng.uniform(half_x, 1 - half_x)), float(rng.uniform(half_y, 1 - half_y))


def _random_event(rng: np.random.Generator, seconds: float, aspect: float) -> Event:
    """One event that is to last this long; long ones move far enough to be seen between two sampled frames."""
    action = str(rng.choice(ACTIONS))
    colour, shape = str(rng.choice(tuple(COLOURS))), str(rng.choice(SHAPES))
    size = rng.uniform(0.44, 0.58) if action in ("grows", "shrinks") else rng.uniform(0.22, 0.55)
    travel = rng.uniform(min(max(0.35, 0.045 * seconds), 0.74), 0.76)
    x, y = _random_centre(rng, size, aspect)
    if action in DIRECTIONS:
        middle = rng.uniform(0.12 + travel / 2, 0.88 - travel / 2)
        x, y = (middle, y) if DIRECTIONS[action][0] else (x, middle)
    return Event(
        colour=colour,
        shape=shape,
        action=action,
        rgb=_random_rgb(rng, colour),
        centre=(float(x), float(y)),
        size=float(size),
        travel=float(travel),
        ratio=float(rng.uniform(1.9, 2.6)),
        blink_seconds=float(rng.uniform(0.5, 0.62 if seconds < 2.5 else 0.9)),
        rotation_degrees=float(rng.uniform(-9, 9)),
    )


def _has_contrast(events: tuple[Event, ...], background: tuple[Rgb, Rgb]) -> bool:
    return all(math.dist(event.fill, colour) >= MIN_CONTRAST for event in events for colour in background)


def _draft(
    rng: np.random.Generator, *, num_events: int, seconds: float, width: int, height: int, fps: float, seed: int
) -> ClipSpec:
    """One random clip, not yet checked."""
    switch = float(rng.uniform(1.0, max(seconds - 1.0, 1.0))) if num_events == 2 else None
    spans = (seconds,) if switch is None else (switch, seconds - switch)
    events = tuple(_random_event(rng, span, width / height) for span in spans)
    return ClipSpec(
        events=events,
        duration_seconds=seconds,
        switch_seconds=switch,
        width=width,
        height=height,
        fps=fps,
        background=_random_background(rng),
        gradient_degrees=float(rng.choice([0, 45, 90, 135])),
        noise=float(max(rng.uniform(-2.0, 7.0), 0.0)),
        crf=int(rng.integers(18, 36)),
        preset=str(rng.choice(PRESETS)),
        seed=seed,
    )


def clip_spec(
    seed: int,
    *,
    num_events: int | None = None,
    duration_seconds: float | None = None,
    resolution: tuple[int, int] | None = None,
    fps: float | None = None,
) -> ClipSpec:
    """The random clip of a seed: the same on every call. What is not given (number of events, length 2 to 20 s, (width,
    height), frames per second) is drawn. The action can be seen at two sampled frames a second.
    """
    rng = np.random.default_rng(seed)
    num_events = num_events or int(rng.integers(1, 3))
    seconds = duration_seconds or float(rng.uniform(2.0, 20.0))
    width, height = resolution or RESOLUTIONS[int(rng.choice(len(RESOLUTIONS), p=RESOLUTION_WEIGHTS))]
    fps = fps or float(rng.choice(SOURCE_FPS))
    while True:
        spec = _draft(rng, num_events=num_events, seconds=seconds, width=width, height=height, fps=fps, seed=seed)
        first, last = spec.events[0], spec.events[-1]
        differ = num_events == 1 or (first.colour, first.shape) != (last.colour, last.shape)
        times = [index / fps for index in sampled_indices(spec.num_frames, fps)]
        if differ and _has_contrast(spec.events, spec.background) and is_observable(spec, times):
            return spec
