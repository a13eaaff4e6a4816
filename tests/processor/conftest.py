"""A checkpoint to read profiles from: the bundled demo model, or, before it is trained, one with random weights."""

from pathlib import Path

import pytest

from tru_vlm.processor.profile import ModelProfile, ModelProfileError, load_profile, resolve_model_path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small Qwen3-VL checkpoint."""
    try:
        return resolve_model_path("demo")
    except ModelProfileError:
        return str(random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny"))


def random_checkpoint(folder: Path) -> Path:
    from demo_model.model import build_model, save_checkpoint
    from demo_model.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    save_checkpoint(build_model(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def profile(checkpoint: str) -> ModelProfile:
    return load_profile(checkpoint)
