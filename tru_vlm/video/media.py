"""The words of this package: what a file holds, how it is to be sampled, what was sampled.  Plain data, no work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tru_vlm.types import MediaKind

ReaderName = Literal["auto", "torchcodec", "pyav", "torchvision", "decord"]
DecodeDevice = Literal["cpu", "cuda"]
SPATIAL_MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2


class LocalFile(Protocol):
    """A complete file on this machine; the spool's files are such."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its size."""
        ...

    @property
    def sha256(self) -> str:
        """Hex digest of its content."""
        ...


@dataclass(frozen=True, slots=True)
class MediaProbe:
    """What a file says it holds.  Nothing has been decoded for it.

    Attributes:
        kind: "video" or "image".
        container: the format, for people ("MP4").
        codec: FFmpeg's or Pillow's name of the coding.
        width, height: as shown, after rotation, pixels.
        duration_seconds: length; None for images and where the file does not tell.
        average_fps: frames per second on average; None as above.
        num_frames: frames in the file; None as above.
        rotation: clockwise turn that was counted in, degrees.
        num_streams: streams of any kind in the container.
    """

    kind: MediaKind
    container: str
    codec: str
    width: int
    height: int
    duration_seconds: float | None
    average_fps: float | None
    num_frames: int | None
    rotation: int
    num_streams: int = 1


@dataclass(frozen=True, slots=True)
class SamplingBounds:
    """What the model and the server allow, and what they take when a request does not say.

    Attributes:
        patch_size: side of a vision patch, pixels.
        min_pixels, max_pixels: height x width of one resized video frame; ``max_pixels`` is also a ceiling.
        default_fps: sampled frames per second of video.
        default_max_frames: most frames when the request names no bound.
        max_frames: most frames that any request may have.
        total_pixels: ceiling for a whole video, pixels of temporally merged frames (T / 2 x H x W); None for the
            default of qwen_vl_utils (90 % of MODEL_SEQ_LEN tokens).
        image_min_pixels, image_max_pixels: the same for one image; None takes the frame's bounds.
    """

    patch_size: int
    min_pixels: int
    max_pixels: int
    default_fps: float = 2.0
    default_max_frames: int = 768
    max_frames: int = 4096
    total_pixels: int | None = None
    image_min_pixels: int | None = None
    image_max_pixels: int | None = None

    def pixels_of(self, kind: MediaKind) -> tuple[int, int]:
        """(min, max) of height x width of one video frame, or of one image."""
        if kind == "video":
            return self.min_pixels, self.max_pixels
        low, high = self.image_min_pixels, self.image_max_pixels
        return low if low is not None else self.min_pixels, high if high is not None else self.max_pixels


@dataclass(frozen=True, slots=True)
class VideoAllowance:
    """What a model's context has left for one video or image, beside the text and the answer.

    Attributes:
        tokens: for visual tokens and timestamps together.
        timestamp_tokens: most tokens that the text of one pair of frames takes; 0 for an image.
    """

    tokens: int
    timestamp_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EffectiveSampling:
    """Final options: a request's, filled in with defaults and cut to the ceilings.  Part of the cache key.

    Attributes are those of :class:`tru_vlm.types.VideoParams`; ``patch_size`` as in :class:`SamplingBounds`.
    ``takes_fewer``: a file with fewer than ``nframes`` frames gives what it has, instead of being refused.
    """

    kind: MediaKind
    patch_size: int
    min_pixels: int
    max_pixels: int
    total_pixels: int | None = None
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    takes_fewer: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SampledInfo:
    """Numbers about frames that were written: shape (T, 3, H, W).

    Attributes:
        kind: "video" or "image".
        num_frames, height, width: T, H and W.
        source_height, source_width: as shown, before resizing.
        decoder: which reader decoded.
        duration_seconds: length of the file; None for images.
        source_fps, sample_fps: frames per second of the file and of the sample; None for images.
        timestamps_seconds: time of each frame from the start of the file; empty for images.
        frames_indices: index of each frame in the source; empty for images.
        notes: what was reduced or clamped, and why.
    """

    kind: MediaKind
    num_frames: int
    height: int
    width: int
    source_height: int
    source_width: int
    decoder: str
    duration_seconds: float | None = None
    source_fps: float | None = None
    sample_fps: float | None = None
    timestamps_seconds: tuple[float, ...] = ()
    frames_indices: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Size of the frames, without the file's header."""
        return self.num_frames * 3 * self.height * self.width

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SampledInfo:
        """From :meth:`as_dict`; raises TypeError or ValueError when a field is missing or of another shape."""
        sequences = {name: tuple(data[name]) for name in ("timestamps_seconds", "frames_indices", "notes")}
        info = cls(**{**data, **sequences})
        if min(info.num_frames, info.height, info.width) < 1:
            raise ValueError("a side of the frames is not positive")
        return info


def num_visual_tokens(*, num_frames: int, height: int, width: int, patch_size: int) -> int:
    """Tokens that frames become: pairs of frames, 2 x 2 patches (an odd number of frames is padded)."""
    pairs = -(-num_frames // TEMPORAL_PATCH_SIZE)
    side = patch_size * SPATIAL_MERGE_SIZE
    return pairs * (height // side) * (width // side)
