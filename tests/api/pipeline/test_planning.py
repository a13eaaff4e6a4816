"""What a request takes: the numbers are the model's own, and what was fitted fits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo_model.generator import ClipSpec, Event, encode
from tru_vlm.api.inference_request import InferenceRequest, MediaRequest
from tru_vlm.api.pipeline.planning import Planner, RequestPlan
from tru_vlm.api.pipeline.token_shares import share_tokens
from tru_vlm.api.service import HostedModel, InferenceService, ParsedForm
from tru_vlm.api.workers.link import Hello, Submit, WorkerLink, socket_path
from tru_vlm.engine.base import EngineDescription, EngineStats
from tru_vlm.principal import ANONYMOUS
from tru_vlm.processor.profile import ModelProfile, load_profile
from tru_vlm.processor.prompt import MediaLayout, build_prompt
from tru_vlm.settings import Settings
from tru_vlm.types import FramesRef, GenerationParams, MediaPart, Message, StatusEvent, TextPart, VideoInfo, VideoParams
from tru_vlm.video.media import MediaProbe
from tru_vlm.video.service import VideoService

CLIP = MediaProbe(
    kind="video",
    container="MP4",
    codec="h264",
    width=320,
    height=240,
    duration_seconds=20.0,
    average_fps=25.0,
    num_frames=500,
    rotation=0,
)
PICTURE = replace(CLIP, kind="image", duration_seconds=None, average_fps=None, num_frames=1)
FIT = VideoParams(fit=True)

PlannerOf = Callable[..., Planner]


@pytest.fixture(scope="session")
def profile() -> ModelProfile:
    return load_profile("demo")


@pytest.fixture(scope="session")
def planner_of(profile: ModelProfile, tmp_path_factory: pytest.TempPathFactory) -> PlannerOf:
    """Planners for a context of so many tokens, and perhaps a KV cache."""
    videos = VideoService(
        frames_dir=tmp_path_factory.mktemp("frames"),
        frame_cache_bytes=1,
        decode_processes=1,
        decode_timeout_seconds=1,
        decode_memory_bytes=2 << 30,
    )

    def make(context_tokens: int, kv_cache_tokens: int | None = None) -> Planner:
        limited = replace(profile, context_tokens=context_tokens)
        return Planner(Settings(_env_file=None), limited, videos, lambda: kv_cache_tokens)

    return make


def ask(params: VideoParams = FIT, *, prompt: str = "What happens?", max_tokens: int | None = None) -> InferenceRequest:
    text = (TextPart(prompt),) if prompt else ()
    return InferenceRequest(
        messages=(Message("user", (MediaPart(0), *text)),),
        media=(MediaRequest("http://host/clip.mp4", params, param="video_url"),),
        generation=GenerationParams(max_tokens=max_tokens or 2048, temperature=0.0),
        max_tokens_is_default=max_tokens is None,
        stream=False,
    )


def plan(planner: Planner, request: InferenceRequest, probe: MediaProbe = CLIP) -> RequestPlan:
    return asyncio.run(planner.plan([probe], request))


@pytest.mark.parametrize("probe", [CLIP, PICTURE])
@pytest.mark.parametrize("prompt", ["What happens in this video?", ""])
def test_the_numbers_are_those_of_the_prompt_that_would_be_built(
    planner_of: PlannerOf, profile: ModelProfile, probe: MediaProbe, prompt: str
) -> None:
    request = ask(VideoParams(), prompt=prompt, max_tokens=50)
    planned = plan(planner_of(30_000), request, probe)
    sampling = planned.media[0].sampling
    layout = MediaLayout(sampling.kind, sampling.num_frames, sampling.height, sampling.width, sampling.frame_timestamps)
    built = build_prompt(profile, request.messages, [layout])
    tokens = planned.tokens
    assert (tokens.text + tokens.video, tokens.video) == (built.num_tokens, built.num_visual_tokens)
    assert (tokens.answer, tokens.total, tokens.context) == (50, built.num_tokens + 50, 30_000)
    assert tokens.fits


def test_fit_changes_nothing_for_what_fits(planner_of: PlannerOf) -> None:
    planner = planner_of(30_000)
    assert plan(planner, ask()) == plan(planner, ask(VideoParams()))


def test_an_open_answer_has_room_in_a_fitted_request(planner_of: PlannerOf) -> None:
    needed = plan(planner_of(30_000), ask(VideoParams())).tokens
    planner = planner_of(needed.text + needed.video + 1)
    plain, fitted = plan(planner, ask(VideoParams())), plan(planner, ask())
    assert (plain.tokens.fits, plain.tokens.answer) == (True, 1)
    assert fitted.tokens.fits
    assert fitted.tokens.answer >= fitted.tokens.context // 4
    assert fitted.tokens.video < plain.tokens.video


def test_a_kv_cache_that_is_smaller_than_the_context_is_what_counts(planner_of: PlannerOf) -> None:
    planner = planner_of(30_000, kv_cache_tokens=300)
    request = ask(VideoParams(), max_tokens=100)
    planned = plan(planner, request)
    assert (planned.tokens.context, planned.tokens.fits) == (300, False)
    refusal = planner.refusal(planned.tokens, request)
    assert f"make {planned.tokens.total}; the KV cache holds 300." in refusal.message
    assert "with fit, the server does" in refusal.message
    assert plan(planner, ask(max_tokens=100)).tokens.fits
    assert (planner.knows_kv_cache, planner_of(30_000).knows_kv_cache) == (True, False)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask(VideoParams(), max_tokens=10), "video_params.max_frames"),
        (ask(VideoParams(), prompt="x y z " * 200, max_tokens=10), "prompt"),
        (ask(prompt="x y z " * 200, max_tokens=10), "prompt"),
        (ask(max_tokens=190), "generation_params.max_tokens"),
    ],
)
def test_a_refusal_names_the_field_that_takes_most(
    planner_of: PlannerOf, request_: InferenceRequest, param: str
) -> None:
    planner = planner_of(200)
    planned = plan(planner, request_)
    assert not planned.tokens.fits
    assert planner.refusal(planned.tokens, request_).param == param


def test_the_answer_tells_what_fit_would_do(planner_of: PlannerOf) -> None:
    def answer(request: InferenceRequest):
        return asyncio.run(planner_of(300).answer(CLIP, request, size_bytes=123, model="chat", variant="demo"))

    plain = answer(ask(VideoParams(), max_tokens=100))
    assert (plain.model, plain.variant) == ("chat", "demo")
    assert (plain.fits, plain.media.size_bytes, plain.media.source_fps) == (False, 123, 25.0)
    assert "the model's context holds 300." in plain.refusal
    assert plain.fitted is not None
    assert plain.fitted.tokens.total <= 300 < plain.tokens.total
    fitted = answer(ask(max_tokens=100))
    assert (fitted.fits, fitted.refusal, fitted.fitted) == (True, None, None)
    assert fitted.sampling == plain.fitted.sampling
    hopeless = answer(ask(VideoParams(), max_tokens=299))
    assert (hopeless.fits, hopeless.fitted) == (False, None)
    assert "fewest and smallest" in answer(ask(max_tokens=299)).refusal


def test_questions_of_about_the_same_length_see_the_same_frames(planner_of: PlannerOf) -> None:
    planner = planner_of(2000)
    long = replace(CLIP, duration_seconds=600.0, num_frames=15_000)
    plans = [plan(planner, ask(prompt="why? " * number, max_tokens=100), long) for number in range(1, 40)]
    assert all(planned.tokens.fits for planned in plans)
    assert len({planned.media[0].allowance for planned in plans}) <= 4


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.integers(40, 3000),
    words=st.integers(0, 60),
    max_tokens=st.none() | st.integers(1, 400),
    seconds=st.floats(0.2, 14_000),
    true_seconds=st.floats(0.2, 1e6),
    nframes=st.none() | st.integers(2, 400),
)
def test_what_is_fitted_fits_also_when_the_header_lied(
    *,
    planner_of: PlannerOf,
    context: int,
    words: int,
    max_tokens: int | None,
    seconds: float,
    true_seconds: float,
    nframes: int | None,
) -> None:
    planner = planner_of(context)
    request = ask(VideoParams(fit=True, nframes=nframes), prompt="why? " * words, max_tokens=max_tokens)
    told = replace(CLIP, duration_seconds=seconds, num_frames=max(1, round(seconds * 25)))
    truth = replace(CLIP, duration_seconds=true_seconds, num_frames=max(1, round(true_seconds * 25)))
    found = VideoInfo("video", 2, 32, 64, 240, 320, 2, "pyav", duration_seconds=true_seconds, source_fps=25.0)
    planned = plan(planner, request, told)
    again = asyncio.run(planner.plan_again(planned, [found], request))
    for one in (planned, again):
        sampling = one.media[0].sampling
        is_smallest = (sampling.num_frames, sampling.height, sampling.width) == (2, 32, 64)
        assert one.tokens.fits or is_smallest
    # What the decoder makes of the second plan's bounds and the frames that there are.
    videos = planner._videos
    (media,), (item,) = again.media, request.media
    bounds = videos._settle(media.probe, item.params, planner.bounds, media.allowance).sampling
    taken = videos._planned(truth, bounds)
    layout = MediaLayout("video", taken.num_frames, taken.height, taken.width, taken.frame_timestamps)
    assert planner._tokens(planner._count(request, [layout]), request).fits or is_smallest


@pytest.mark.parametrize("num_frames", [8, 3])
def test_decoded_frames_are_counted_as_they_are(planner_of: PlannerOf, num_frames: int) -> None:
    planner, request = planner_of(30_000), ask(VideoParams(nframes=8), max_tokens=50)
    planned = plan(planner, request)
    sampling = planned.media[0].sampling
    times = sampling.frame_timestamps[:num_frames]
    frames = FramesRef("f.npy", "video", "key", num_frames, sampling.height, sampling.width, times)
    counted = asyncio.run(planner.count([frames], request, planned))
    layout = MediaLayout("video", num_frames, sampling.height, sampling.width, times)
    assert counted == planner._tokens(planner._count(request, [layout]), request)
    assert (counted == planned.tokens) == (num_frames == 8)


# ---- before a worker has told how much it holds ---------------------------------------------------------------------


def test_a_fitted_request_waits_for_the_size_of_the_kv_cache_and_a_plan_does_not(
    profile: ModelProfile, tmp_path: Path
) -> None:
    clip = encode(ClipSpec(events=(Event("red", "circle", "moves left"),), duration_seconds=8.0), tmp_path / "clip.mp4")
    stats = replace(EngineStats(0, 0, 0, 0, 0, 0, 0, 0), kv_cache_tokens=160)
    hello = Hello(
        0, 1, EngineDescription("hf", "m", "qwen3_vl", "cpu", "float32", "sdpa", "", "", "none", 1, 4, 4, 1, {}), stats
    )
    configuration = Settings(_env_file=None, storage_dir=tmp_path / "storage", decode_processes=1)
    service = InferenceService(configuration, [HostedModel("demo", configuration, profile, tmp_path, num_workers=1)])
    submitted: list[Submit] = []
    is_over = threading.Event()

    def worker() -> None:
        link = WorkerLink(socket_path(tmp_path, 0), lambda: hello)
        while not submitted and not is_over.is_set():
            submitted.extend(message for message in link.receive(0.1) if isinstance(message, Submit))
        link.close()

    async def upload(**fields: str) -> InferenceRequest:
        async def content():
            yield clip.read_bytes()

        file = await service.spool.write(content(), filename=None, max_bytes=1 << 20, param="video")
        form = {"fit": "true", "max_tokens": "32", **fields}
        return await service.parse_form(ParsedForm(form, file), is_plan=not fields)

    async def scenario() -> None:
        await service.start()
        try:
            answer = await service.plan(await upload(), ANONYMOUS)
            assert (answer.fits, answer.tokens.context) == (True, profile.context_tokens)
            stream = await service.open(await upload(prompt="What happens?"), ANONYMOUS)
            assert await anext(stream) == StatusEvent(stream.id, "decoding")
            assert await anext(stream) == StatusEvent(stream.id, "waiting")
            threading.Thread(target=worker).start()
            rest = [event async for event in stream]  # the worker ends when it has the request
            assert rest[-1].error.code == "worker_died"
            (frames,) = submitted[0].request.media
            generation = submitted[0].request.generation
            layout = MediaLayout("video", frames.num_frames, frames.height, frames.width, frames.timestamps_seconds)
            prompt = build_prompt(profile, submitted[0].request.messages, [layout])
            assert prompt.num_tokens + generation.max_tokens <= 160
            assert (await service.plan(await upload(), ANONYMOUS)).tokens.context == 160
        finally:
            is_over.set()
            await service.close()

    asyncio.run(scenario())


# ---- several videos and images --------------------------------------------------------------------------------------


@given(needs=st.lists(st.integers(0, 5000), max_size=8), tokens=st.integers(0, 20_000))
def test_shares_are_fair(needs: list[int], tokens: int) -> None:
    parts = share_tokens(needs, tokens)
    assert sum(parts) <= tokens
    if not needs:
        return
    last = max(range(len(needs)), key=lambda index: (needs[index], index))
    for index, part in enumerate(parts):
        assert part <= needs[index] or index == last
    short = [part for part, need in zip(parts, needs, strict=True) if part < need]
    if short:  # nobody has more than one that had to give something up, but for the rounding
        assert max(parts) <= min(short) * 33 / 32 + 33
    elif sum(needs) <= tokens:
        assert all(part >= need for part, need in zip(parts, needs, strict=True) if need < 64)


def conversation(*params: VideoParams, max_tokens: int = 100) -> InferenceRequest:
    media = tuple(
        MediaRequest(f"http://host/{number}.mp4", each, param=f"part.{number}", sampling_param=f"part.{number}")
        for number, each in enumerate(params)
    )
    turns = tuple(
        message
        for number in range(len(params))
        for message in (
            Message("user", (MediaPart(number), TextPart(f"What is {number}?"))),
            Message("assistant", (TextPart("A red circle moves left."),)),
        )
    )
    return replace(ask(max_tokens=max_tokens), messages=turns, media=media)


def test_a_conversations_numbers_are_those_of_its_prompt(planner_of: PlannerOf, profile: ModelProfile) -> None:
    request = conversation(VideoParams(), VideoParams(fps=1.0), VideoParams())
    planned = asyncio.run(planner_of(30_000).plan([CLIP, CLIP, PICTURE], request))
    layouts = [
        MediaLayout(s.kind, s.num_frames, s.height, s.width, s.frame_timestamps)
        for s in (media.sampling for media in planned.media)
    ]
    built = build_prompt(profile, request.messages, layouts)
    assert (planned.tokens.text + planned.tokens.video, planned.tokens.video) == (
        built.num_tokens,
        built.num_visual_tokens,
    )
    assert [media.sampling.num_frames for media in planned.media] == [40, 20, 1]


def test_of_several_the_largest_are_fitted_and_the_small_ones_left_alone(planner_of: PlannerOf) -> None:
    short = replace(CLIP, duration_seconds=2.0, num_frames=50)
    probes = [replace(CLIP, duration_seconds=60.0, num_frames=1500), short, PICTURE, CLIP]
    free = conversation(*[VideoParams()] * 4)
    request = conversation(FIT, FIT, FIT, VideoParams())
    planner = planner_of(1000)
    whole, fitted = (asyncio.run(planner.plan(probes, each)) for each in (free, request))
    assert (whole.tokens.fits, fitted.tokens.fits) == (False, True)
    assert [media.allowance is not None for media in fitted.media] == [True, False, False, False]
    assert whole.media[1:] == fitted.media[1:]
    assert fitted.media[0].sampling.video_tokens < whole.media[0].sampling.video_tokens
    assert fitted.tokens.total > 0.8 * fitted.tokens.context, "most of what is there is used"


def test_a_refusal_names_the_video_that_could_be_made_smaller(planner_of: PlannerOf) -> None:
    request = conversation(FIT, VideoParams(fps=10.0), max_tokens=10)
    planner = planner_of(500)
    planned = asyncio.run(planner.plan([CLIP, CLIP], request))
    assert not planned.tokens.fits
    assert planner.refusal(planned.tokens, request).param == "part.1.max_frames"


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.integers(200, 3000),
    told=st.lists(st.floats(0.2, 600), min_size=2, max_size=4),
    factors=st.lists(st.floats(0.1, 50), min_size=4, max_size=4),
)
def test_several_that_are_fitted_fit_also_when_their_headers_lied(
    *, planner_of: PlannerOf, context: int, told: list[float], factors: list[float]
) -> None:
    planner = planner_of(context)
    request = conversation(*[FIT] * len(told), max_tokens=20)
    probes = [replace(CLIP, duration_seconds=s, num_frames=max(1, round(s * 25))) for s in told]
    planned = asyncio.run(planner.plan(probes, request))
    true_seconds = [s * factor for s, factor in zip(told, factors, strict=False)]
    found = [
        VideoInfo("video", 2, 32, 64, 240, 320, 2, "pyav", duration_seconds=s, source_fps=25.0) for s in true_seconds
    ]
    again = asyncio.run(planner.plan_again(planned, found, request))
    for one in (planned, again):
        sizes = {(m.sampling.num_frames, m.sampling.height, m.sampling.width) for m in one.media}
        assert one.tokens.fits or sizes == {(2, 32, 64)}, one.tokens
