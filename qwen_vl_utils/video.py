"""A file to sampled frames. Owns the order of the steps: scan, plan, decode, resize, account. Knows no prompt."""

from __future__ import annotations

import logging
import os
import queue
import threading
from bisect import bisect
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen_vl_utils.errors import DecodeError, FrameTooLargeError, VideoError
from qwen_vl_utils.metadata import FrameTable, scan_frames
from qwen_vl_utils.readers import BackendName, FrameLoader, OpenedVideo, choose_backend, open_reader
from qwen_vl_utils.readers.pyav import nearest_frames
from qwen_vl_utils.resize import Arithmetic, resize_into
from qwen_vl_utils.sampling import Note, SamplingOptions, SourceCounts, VideoPlan, plan_video, with_notes

logger = logging.getLogger(__name__)

_MAX_MISSING_SHARE = 0.5
"""With more of the wanted frames missing than this, the answer would be about another video."""

_FRAMES_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, eq=False)
class SampledVideo:
    """The frames of one video, ready for patching.

    frames: uint8 (T, 3, H, W), RGB, contiguous, T even, sides multiples of 2 * image_patch_size.
    frames_indices: absolute index of each frame in the source, ascending. pts_seconds: the time at which each is
    really shown, counted from the first frame of the source (index 0 is 0.0, whatever the container's clock says at
    that point: ``start_seconds``); right for a variable frame rate. source_fps: frames / duration. sample_fps:
    T / num_source_frames * source_fps, as Qwen2.5-VL's rope wants it. num_source_frames: frames in the chosen span;
    total_num_frames: in the file. source_height, source_width: as shown, before resizing.
    """

    frames: torch.Tensor
    frames_indices: list[int]
    pts_seconds: list[float]
    source_fps: float
    sample_fps: float
    num_source_frames: int
    total_num_frames: int
    duration_seconds: float
    start_seconds: float
    source_height: int
    source_width: int
    backend: BackendName
    notes: tuple[Note, ...]


def read_video(
    source: str | Path,
    *,
    sampling: SamplingOptions | None = None,
    image_patch_size: int = 16,
    backend: BackendName | str | None = None,
    num_threads: int | None = None,
    device: str = "cpu",
    out: torch.Tensor | None = None,
    max_source_pixels: int | None = None,
    arithmetic: Arithmetic = "uint8",
) -> SampledVideo:
    """Sample, decode and resize a local video file.

    backend: None takes PyAV. num_threads: cores for the decoder; None takes those of this process, fewer for large
    pictures. device: "cuda" decodes on the card (torchcodec). out: uint8 memory of at least
    ``plan.num_bytes`` to write the frames into (shared memory, say) instead of allocating it.
    max_source_pixels: most height x width of a decoded frame; the size may change in mid-stream. arithmetic: of the
    resize; "float32" gives the pixels of the package on PyPI, "uint8" those of Transformers' processor, sooner.

    Memory: the output plus a few source frames, whatever the file's length.
    Raises the family of VideoError, each naming the file and the stage.
    """
    options = sampling if sampling is not None else SamplingOptions()
    choice = choose_backend(backend)
    table = scan_frames(source)
    threads = num_threads if num_threads is not None else default_threads(table)
    with closing(open_reader(choice.name, device).open(table, num_threads=threads)) as video:
        plan = plan_for_table(table, options, image_patch_size=image_patch_size, average_fps=video.average_fps)
        decode = _Decode(
            table,
            plan,
            num_threads=threads,
            backend=choice.name,
            out=out,
            max_source_pixels=max_source_pixels,
            arithmetic=arithmetic,
        )
        return decode.run(video)


def decode_plan(
    table: FrameTable,
    plan: VideoPlan,
    *,
    backend: BackendName | str | None = None,
    num_threads: int | None = None,
    device: str = "cpu",
    out: torch.Tensor | None = None,
    max_source_pixels: int | None = None,
    arithmetic: Arithmetic = "uint8",
) -> SampledVideo:
    """The frames of ``plan``, which ``plan_for_table`` made for ``table``: the same frames from every decoder.

    (``read_video`` plans with the decoder's own mean rate, as the package on PyPI does; FFmpeg's versions differ in
    how long a last frame lasts.) Arguments, memory and errors are those of ``read_video``.
    """
    choice = choose_backend(backend)
    threads = num_threads if num_threads is not None else default_threads(table)
    decode = _Decode(
        table,
        plan,
        num_threads=threads,
        backend=choice.name,
        out=out,
        max_source_pixels=max_source_pixels,
        arithmetic=arithmetic,
    )
    with closing(open_reader(choice.name, device).open(table, num_threads=threads)) as video:
        return decode.run(video)


def plan_for_table(
    table: FrameTable, options: SamplingOptions, *, image_patch_size: int, average_fps: float | None = None
) -> VideoPlan:
    """The exact plan for a scanned file; errors of the arithmetic come out with the file's name."""
    rate = average_fps if average_fps is not None else table.average_fps
    counts = SourceCounts(table.num_frames, rate, table.height, table.width)
    times = table.times().tolist() if table.is_variable_rate else None
    try:
        plan = plan_video(counts, options, image_patch_size=image_patch_size, times=times)
    except VideoError as error:
        raise error.with_file(table.path) from error
    return with_notes(plan, *_source_notes(table))


def default_threads(table: FrameTable) -> int:
    """Cores for the decoder: those that this process may use, at most 8; each thread holds pictures of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pixels = table.height * table.width
    most = 8 if pixels <= 1920 * 1088 else 4 if pixels <= 2560 * 1600 else 2
    return max(1, min(cores, most))


def _source_notes(table: FrameTable) -> tuple[Note, ...]:
    notes = []
    if table.is_variable_rate:
        text = f"variable frame rate, {table.average_fps:.3f} fps on average: times are the frames' own"
        notes.append(Note("variable_frame_rate", text))
    promised = table.probe.num_frames
    # Estimated counts (duration * rate) are often off by a little; a tenth is a file that was cut.
    if promised is not None and promised > table.num_packets * 1.1 + 1:
        text = f"the header promises about {promised} frames, {table.num_packets} are in the file"
        notes.append(Note("source_shorter_than_header", text))
    return tuple(notes)


_Job = tuple[int, FrameLoader]


class _Decode:
    """One plan being carried out: the output, and which source frame went where."""

    def __init__(
        self,
        table: FrameTable,
        plan: VideoPlan,
        *,
        num_threads: int,
        backend: BackendName,
        out: torch.Tensor | None,
        max_source_pixels: int | None,
        arithmetic: Arithmetic,
    ) -> None:
        self.frames = _output(plan, out)
        self.used = list(plan.frames_indices)
        self.notes: list[Note] = []
        self._table = table
        self._plan = plan
        self._num_threads = num_threads
        self._backend = backend
        self._max_source_pixels = max_source_pixels
        self._arithmetic = arithmetic
        self._rows: dict[int, list[int]] = {}
        for row, index in enumerate(plan.frames_indices):
            self._rows.setdefault(index, []).append(row)
        self._sizes: set[tuple[int, int]] = set()

    def run(self, video: OpenedVideo) -> SampledVideo:
        """Fill every row, from ``video``, then from PyAV, then with the nearest frame that decodes; and account."""
        done = self._fill(video.frames(list(self._rows)))
        missing = [index for index in self._rows if index not in done]
        if missing and self._backend != "pyav":
            missing = self._recover(missing)
        if missing:
            self._take_nearest(missing)
        if len(self._sizes) > 1:
            text = f"pictures of {len(self._sizes)} sizes in the video: all scaled to one"
            self.notes.append(Note("frame_size_changed", text))
        return self._sampled()

    def _sampled(self) -> SampledVideo:
        table, plan = self._table, self._plan
        times = table.times()
        return SampledVideo(
            frames=self.frames,
            frames_indices=self.used,
            pts_seconds=[float(times[i]) for i in self.used],
            source_fps=plan.source_fps,
            sample_fps=plan.sample_fps,
            num_source_frames=plan.num_source_frames,
            total_num_frames=plan.total_num_frames,
            duration_seconds=table.duration_seconds,
            start_seconds=table.start_seconds,
            source_height=plan.source_height,
            source_width=plan.source_width,
            backend=self._backend,
            notes=plan.notes + tuple(self.notes),
        )

    def _fill(self, jobs: Generator[_Job]) -> set[int]:
        """Convert and resize ``jobs`` on a second thread while this one decodes on. Returns the indices done."""
        waiting: queue.Queue[_Job | None] = queue.Queue(maxsize=_FRAMES_IN_FLIGHT)
        failure: list[BaseException] = []
        done: set[int] = set()

        def work() -> None:
            # One thread: torch's own would spin for the cores that the decoder's threads are using (measured on two
            # busy cores: 2 s of 5.5 CPU seconds for nothing, and four times the wall time).
            torch.set_num_threads(1)
            while (job := waiting.get()) is not None:
                if failure:
                    continue  # keep taking, so that the decoding thread never waits for room
                try:
                    self._write(*job)
                    done.add(job[0])
                except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                    failure.append(error)

        torch_threads = torch.get_num_threads()
        worker = threading.Thread(target=work, name="qwen-vl-resize", daemon=True)
        worker.start()
        try:
            for job in jobs:
                if failure:
                    break
                waiting.put(job)
        finally:
            jobs.close()
            waiting.put(None)
            worker.join()
            torch.set_num_threads(torch_threads)
        if failure:
            raise failure.pop()  # left in the list, it would hold this frame, and the frame the list
        return done

    def _write(self, index: int, load: FrameLoader) -> None:
        picture = load()
        height, width = int(picture.shape[1]), int(picture.shape[2])
        if self._max_source_pixels is not None and height * width > self._max_source_pixels:
            text = f"a frame is {width} x {height}; at most {self._max_source_pixels} pixels are accepted"
            raise FrameTooLargeError(text, file=self._table.path)
        self._sizes.add((height, width))
        first, *copies = self._rows[index]
        resize_into(picture, self.frames[first], self._arithmetic)
        for row in copies:
            self.frames[row] = self.frames[first]

    def _copy(self, index: int, source: int) -> None:
        for row in self._rows[index]:
            self.frames[row] = self.frames[self._rows[source][0]]

    def _recover(self, missing: list[int]) -> list[int]:
        """Decode by PyAV what the chosen backend could not; the indices that are still missing."""
        video = open_reader("pyav").open(self._table, num_threads=self._num_threads)
        done = self._fill(video.frames(missing))
        if done:
            text = f"{len(done)} frames that {self._backend} could not give exactly were decoded by pyav"
            logger.warning("%s: %s", self._table.path.name, text)
            self.notes.append(Note("recovered_with_pyav", text))
        return [index for index in missing if index not in done]

    def _take_nearest(self, lost: list[int]) -> None:
        """Fill ``lost`` with the nearest frames that decode, and say which they are. Raises DecodeError."""
        replaced, filled = 0, 0
        decoded = sorted(set(self._rows).difference(lost))
        for index, pts, load in nearest_frames(self._table, lost, num_threads=self._num_threads):
            nearest = min(int(self._table.pts.searchsorted(pts)), self._table.num_frames - 1)
            closer = _first_between(decoded, index, nearest)
            if closer is None:
                self._write(index, load)
            else:
                self._copy(index, closer)
            filled += 1
            replaced += nearest != index
            for row in self._rows[index]:
                self.used[row] = nearest if closer is None else closer
        replaced += len(lost) - filled
        if filled < len(lost) or replaced > _MAX_MISSING_SHARE * len(self._rows):
            text = f"{replaced} of the {len(self._rows)} wanted frames cannot be decoded"
            raise DecodeError(text, file=self._table.path)
        if replaced:
            text = f"{replaced} frames cannot be decoded: the nearest that can were used"
            self.notes.append(Note("frames_not_decodable", text))


def _first_between(decoded: list[int], wanted: int, found: int) -> int | None:
    """The first of ``decoded`` (ascending) on the way from ``wanted`` to ``found``, which would overtake it."""
    place = bisect(decoded, wanted)
    if found > wanted:
        return decoded[place] if place < len(decoded) and decoded[place] < found else None
    return decoded[place - 1] if place > 0 and decoded[place - 1] > found else None


def _output(plan: VideoPlan, out: torch.Tensor | None) -> torch.Tensor:
    shape = (plan.num_frames, 3, plan.resized_height, plan.resized_width)
    if out is None:
        with torch.inference_mode(mode=False):  # threads of ours write to it, and they are in no mode of the caller's
            return torch.empty(shape, dtype=torch.uint8)
    if out.dtype != torch.uint8 or out.numel() < plan.num_bytes or not out.is_contiguous():
        raise ValueError(f"out must be contiguous uint8 of at least {plan.num_bytes} bytes")
    return out.view(-1)[: plan.num_bytes].view(shape)
