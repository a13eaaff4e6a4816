"""Engines to test, on the bundled demo model or, before it is trained, on random weights of its size."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_helpers import random_checkpoint
from support import require_vllm

from tru_vlm.engine.hf.config import EngineConfig
from tru_vlm.engine.hf.engine import HfEngine
from tru_vlm.engine.hf.loading import load_model
from tru_vlm.processor.profile import ModelProfile, ModelProfileError, load_profile, resolve_model_path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small models lose more to waiting for threads than they gain, above all beside other test workers."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    try:
        return resolve_model_path("demo")
    except ModelProfileError:
        return str(random_checkpoint(Path(tmp_path_factory.mktemp("checkpoint")) / "tiny"))


@pytest.fixture(scope="session")
def profile(checkpoint) -> ModelProfile:
    return load_profile(checkpoint)


@pytest.fixture(scope="session")
def model(checkpoint, profile):
    """The weights in float32, shared by the engines of a test process: an engine changes none of them."""
    return load_model(profile, EngineConfig(checkpoint))


@pytest.fixture
def make_engine(model, profile, checkpoint):
    """Build an engine over the shared weights with other numbers."""

    def make(**numbers) -> HfEngine:
        config = EngineConfig(checkpoint, **({"kv_cache_tokens": 8192} | numbers))
        return HfEngine(model, profile, config)

    return make


@pytest.fixture
def engine(make_engine) -> HfEngine:
    return make_engine()


@pytest.fixture(scope="session")
def vllm_engine(checkpoint) -> Iterator:
    """One engine on vLLM for the whole session: it takes half a minute to start."""
    require_vllm()
    from tru_vlm.engine.vllm.config import VllmConfig
    from tru_vlm.engine.vllm.engine import VllmEngine

    config = VllmConfig(checkpoint, max_batch_size=4, kv_cache_tokens=8192, prefill_chunk_tokens=256)
    engine = VllmEngine.load(config)
    yield engine
    engine.close()
