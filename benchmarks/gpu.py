"""The hf engine on a card, at the sizes of real checkpoints with random weights.

    python benchmarks/gpu.py [--sizes 4b,8b] [--quantization none,int4] [--batches 1,8,32] [--device cuda]

* decode step: its time over the least time that reading the weights and the rows' keys and values once takes, at the
  copy bandwidth measured in this run;
* tokens/s: over those of Transformers' `generate`, which gets the same requests one after the other as they arrive, in
  batches of what is waiting;
* first token: where its time goes, of a single request with a clip of 60 s.

The size `tiny` is for trying this script without a card (`--sizes tiny --device cpu`); its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import spread

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tru_vlm.engine.base import EngineRequest, FinishEvent, MediaInput, TokenEvent  # noqa: E402
from tru_vlm.engine.hf.config import EngineConfig  # noqa: E402
from tru_vlm.engine.hf.engine import HfEngine  # noqa: E402
from tru_vlm.engine.hf.loading import prepare_model  # noqa: E402
from tru_vlm.processor.patches import patchify  # noqa: E402
from tru_vlm.processor.profile import ModelProfile, load_profile  # noqa: E402
from tru_vlm.processor.prompt import MediaLayout, build_prompt  # noqa: E402
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart  # noqa: E402

CONTEXT_TOKENS = 32_768
CLIP_SECONDS, FPS = 60.0, 2.0
FRAME_SIZE = {"tiny": (64, 64)}  # height, width of frames; others take DEFAULT_FRAME_SIZE
DEFAULT_FRAME_SIZE = (224, 416)
ANSWER_TOKENS = 128
STEPS = 50


@dataclass(frozen=True)
class Size:
    """A model's shape, as in its checkpoint's config.json; ``None`` is the demo model's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    is_tied: bool
    vision: dict[str, Any]


VISION = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 16}
VISION_300M = VISION | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
VISION_600M = VISION | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
SIZES = {
    "tiny": Size(256, 512, 2, 8, 2, 1000, True, VISION | {"depth": 2, "hidden_size": 64, "intermediate_size": 128}),
    "4b": Size(2560, 9728, 36, 32, 8, 151_936, True, VISION_300M | {"deepstack_visual_indexes": [5, 11, 17]}),
    "8b": Size(4096, 12_288, 36, 32, 8, 151_936, False, VISION_600M | {"deepstack_visual_indexes": [8, 16, 24]}),
}


def random_model(size: Size, profile: ModelProfile, device: str, dtype: torch.dtype) -> Any:
    """Transformers' model of that size.  Only tokens that the demo model's tokenizer knows can be chosen."""
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig

    head_dim = 128 if size.hidden >= 2048 else size.hidden // size.heads
    text = {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": head_dim,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [head_dim // 2 - 2 * (head_dim // 2 * 5 // 16), *[head_dim // 2 * 5 // 16] * 2],
            "mrope_interleaved": True,
        },
    }
    vision = {"deepstack_visual_indexes": [0], **size.vision, "out_hidden_size": size.hidden}
    ids = {"image_token_id": profile.image_token_id, "video_token_id": profile.video_token_id}
    ids |= {"vision_start_token_id": profile.vision_start_token_id, "vision_end_token_id": profile.vision_end_token_id}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size.is_tied, **ids)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():
        model.lm_head.weight[len(profile.tokenizer) :] = 0
    return model.eval().requires_grad_(requires_grad=False)


def clip(number: int, frame_size: tuple[int, int]) -> MediaInput:
    """Frames of noise of a clip of 60 s."""
    count = int(CLIP_SECONDS * FPS)
    frames = np.random.default_rng(number).integers(0, 256, (count, 3, *frame_size), dtype=np.uint8)
    return MediaInput("video", frames, f"clip-{number}", tuple(i / FPS for i in range(count)), tuple(range(count)), FPS)


def question(name: str, media: MediaInput, num_tokens: int = ANSWER_TOKENS) -> EngineRequest:
    """A question whose answer has exactly so many tokens."""
    message = Message("user", (MediaPart(0), TextPart("What happens in this video?")))
    return EngineRequest(name, (message,), (media,), GenerationParams(num_tokens, temperature=0.0, ignore_eos=True))


def synchronize(device: str) -> None:
    """Wait for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy on the device reads and writes together."""
    source = torch.empty(1 << 28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(seconds[1:])


def decode_step(engine: HfEngine, clips: list[MediaInput], device: str) -> list[float]:
    """Seconds of steps in which every row goes on by a token."""
    for number, media in enumerate(clips):
        engine.submit(question(f"step-{number}", media, 4 * STEPS))
    started: set[str] = set()
    while len(started) < len(clips):
        started |= {event.request_id for event in engine.step() if isinstance(event, TokenEvent)}
    seconds = []
    for _ in range(STEPS):
        synchronize(device)
        begin = time.perf_counter()
        engine.step()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    for number in range(len(clips)):
        engine.abort(f"step-{number}")
    while engine.has_work():
        engine.step()
    return seconds


def read_bytes(engine: HfEngine, model: Any, num_rows: int, num_tokens: int) -> int:
    """What a decode step cannot but read: the text model's weights, and the rows' keys and values."""
    weights = sum(parameter.nbytes for parameter in model.model.language_model.layers.parameters())
    weights += model.lm_head.weight.nbytes
    token_bytes = engine._block_bytes // engine._config.block_tokens  # noqa: SLF001 - the engine's own arithmetic
    return int(weights + num_rows * num_tokens * token_bytes)


def engine_rate(engine: HfEngine, clips: list[MediaInput], interval: float) -> float:
    """Tokens per second of requests that arrive one by one, ``interval`` seconds apart."""
    begin, submitted, tokens = time.perf_counter(), 0, 0
    while submitted < len(clips) or engine.has_work():
        while submitted < len(clips) and time.perf_counter() - begin >= submitted * interval:
            engine.submit(question(f"rate-{submitted}", clips[submitted]))
            submitted += 1
        if not engine.has_work():
            time.sleep(0.001)
            continue
        tokens += sum(event.usage.completion_tokens for event in engine.step() if isinstance(event, FinishEvent))
    return tokens / (time.perf_counter() - begin)


def generate_rate(model: Any, profile: ModelProfile, clips: list[MediaInput], interval: float, max_batch: int) -> float:
    """The same of Transformers' ``generate``, in batches of what has arrived."""
    begin, done, tokens = time.perf_counter(), 0, 0
    while done < len(clips):
        arrived = min(len(clips), 1 + int((time.perf_counter() - begin) / interval) if interval else len(clips))
        batch = clips[done : min(arrived, done + max_batch)]
        if not batch:
            time.sleep(0.001)
            continue
        inputs = _generate_inputs(profile, batch, model.device, model.dtype)
        model.generate(
            **inputs, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=None
        )
        done += len(batch)
        tokens += len(batch) * ANSWER_TOKENS
    return tokens / (time.perf_counter() - begin)


def _generate_inputs(
    profile: ModelProfile, batch: list[MediaInput], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Requests of one length, so that nothing is padded."""
    prompts, pixels, grids = [], [], []
    for media in batch:
        count, _, height, width = media.frames.shape
        layout = MediaLayout("video", count, height, width, media.timestamps_seconds)
        prompt = build_prompt(profile, question("", media).messages, [layout])
        prompts.append(prompt)
        grids.append(prompt.spans[0].grid_thw)
        pixels.append(
            patchify(
                media.frames,
                patch_size=profile.patch_size,
                spatial_merge_size=profile.spatial_merge_size,
                temporal_patch_size=profile.temporal_patch_size,
            )
        )
    return {
        "input_ids": torch.stack([torch.from_numpy(prompt.token_ids) for prompt in prompts]).to(device),
        "mm_token_type_ids": torch.stack([torch.from_numpy(p.mm_token_type_ids()) for p in prompts]).to(device),
        "pixel_values_videos": torch.cat(pixels).to(device, dtype),
        "video_grid_thw": torch.tensor(grids, device=device),
    }


def first_token(engine: HfEngine, media: MediaInput) -> str:
    """Milliseconds to the first token, by stage."""
    begin = time.perf_counter()
    engine.submit(question("first", media, 2))
    first = 0.0
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, TokenEvent) and not first:
                first = time.perf_counter() - begin
            if isinstance(event, FinishEvent):
                inside = event.timings
    return f"{1000 * first:.0f} (vision {1000 * inside.preprocess:.0f}, prefill {1000 * inside.prefill:.0f})"


def run_size(name: str, quantization: str, options: argparse.Namespace) -> None:
    """One size: its lines of the table."""
    profile = dataclasses.replace(load_profile("demo"), context_tokens=CONTEXT_TOKENS, is_demo=False)
    dtype = torch.bfloat16 if torch.device(options.device).type == "cuda" else torch.float32
    rates: dict[int, float] = {}
    most = max(options.batches)
    frame_size = FRAME_SIZE.get(name, DEFAULT_FRAME_SIZE)
    clips = [clip(number, frame_size) for number in range(most)]
    model = random_model(SIZES[name], profile, options.device, dtype)
    if quantization == "none" and not options.skip_generate:
        # Arrivals spread over the time that the requests take one after the other: nobody waits for a full batch.
        alone = ANSWER_TOKENS / generate_rate(model, profile, clips[:1], 0.0, 1)
        for batch in options.batches:
            rates[batch] = generate_rate(model, profile, clips[:batch], alone / 4, batch)
        interval = alone / 4
    else:
        interval = 0.0
    config = EngineConfig(
        "random", device=options.device, quantization=quantization, max_batch_size=most, feature_cache_bytes=0,
        prefix_cache=False, max_context_tokens=CONTEXT_TOKENS, kv_cache_tokens=options.kv_cache_tokens,
    )  # fmt: skip
    engine = HfEngine(prepare_model(model, config), profile, config)
    print(f"# {name}, {quantization}: {engine.description.decoding}", flush=True)
    bandwidth = copy_bandwidth(options.device)
    for batch in options.batches:
        seconds = decode_step(engine, clips[:batch], options.device)
        num_tokens = len(_generate_inputs(profile, clips[:1], torch.device("cpu"), dtype)["input_ids"][0])
        floor = read_bytes(engine, model, batch, num_tokens) / bandwidth
        rate = engine_rate(engine, clips[:batch], interval)
        ratio = f"{rate / rates[batch]:.2f}" if batch in rates else "-"
        columns = [
            name, quantization, str(batch), str(num_tokens), spread([1000 * s for s in seconds]),
            f"{statistics.median(seconds) / floor:.2f}", f"{rate:.0f}", ratio, first_token(engine, clips[0]),
        ]  # fmt: skip
        print(f"| {' | '.join(columns)} |", flush=True)
    engine.close()


def main() -> None:
    """Parse the arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["4b", "8b"])
    parser.add_argument("--quantization", type=lambda text: text.split(","), default=["none", "int4"])
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kv-cache-tokens", type=int, default=0)
    parser.add_argument("--skip-generate", action="store_true")
    options = parser.parse_args()
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(f"{datetime.now(UTC):%Y-%m-%d}, {hardware}, torch {torch.__version__}\n")
    print(
        "| size | weights | rows | prompt tokens | decode step ms | / floor | tokens/s | / generate | first token ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.sizes:
        for quantization in options.quantization:
            run_size(name, quantization, options)
            if options.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
