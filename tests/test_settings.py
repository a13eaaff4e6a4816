"""Settings: what is accepted, what stops the start, and that the template is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tru_vlm.settings import Settings, SettingsError, env_template, load_settings

ROOT = Path(__file__).parents[1]
OWNERS_DEFAULTS = {
    "MODEL_BACKEND": "hf",
    "DEFAULT_VIDEO_FPS": 2.0,
    "DEFAULT_MAX_FRAMES": 768,
    "IMAGE_PATCH_SIZE": 16,
    "MAX_NEW_TOKENS": 2048,
    "TEMPERATURE": 0.7,
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_owners_names_and_defaults() -> None:
    settings = load_settings()
    for name, value in OWNERS_DEFAULTS.items():
        assert getattr(settings, name.lower()) == value
    for name in ("MODEL_PATH", "USE_FLASH_ATTN", "VLLM_GPU_MEMORY_UTILIZATION", "VLLM_TENSOR_PARALLEL_SIZE"):
        assert name.lower() in Settings.model_fields


def test_a_dotenv_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PORT=9001\nTEMPERATURE=0.1\n")
    monkeypatch.setenv("TEMPERATURE", "0.2")
    settings = load_settings()
    assert (settings.port, settings.temperature) == (9001, 0.2)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("MODEL_BACKEND", "trt", "'hf' or 'vllm'"),
        ("DEFAULT_VIDEO_FPS", "0", "greater than 0"),
        ("DEFAULT_VIDEO_FPS", "nan", "less than or equal to 60"),
        ("PORT", "80", "greater than or equal to 1024"),
        ("USE_FLASH_ATTN", "perhaps", "boolean"),
        ("MAX_NEW_TOKENS", "many", "integer"),
        ("VIDEO_READER", "opencv", "'auto', 'torchcodec', 'pyav', 'torchvision' or 'decord'"),
    ],
)
def test_a_wrong_value_names_variable_value_and_what_is_accepted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert name in text
    assert value in text
    assert accepted in text


@pytest.mark.parametrize("reader", ["pyav", "torchvision", "decord"])
def test_only_torchcodec_decodes_on_cuda(monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    monkeypatch.setenv("VIDEO_DECODE_DEVICE", "cuda")
    assert load_settings().video_decode_device == "cuda"
    monkeypatch.setenv("VIDEO_READER", reader)
    with pytest.raises(
        SettingsError, match=f"VIDEO_DECODE_DEVICE=cuda: .* only torchcodec .* VIDEO_READER is {reader}"
    ):
        load_settings()


def test_an_unknown_name_in_dotenv_is_told() -> None:
    Path(".env").write_text("MODEL_PTAH=/x\n")
    with pytest.raises(SettingsError, match="MODEL_PTAH: there is no such setting"):
        load_settings()


def test_the_template_is_what_the_code_says() -> None:
    assert (ROOT / "env.template").read_text() == env_template(), "run: python -m tru_vlm.settings > env.template"


def test_the_template_shows_every_default() -> None:
    shown = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", env_template(), re.M))
    assert set(shown) == {name.upper() for name in Settings.model_fields}
    Path(".env").write_text("\n".join(f"{name}={value}" for name, value in shown.items() if value))
    assert load_settings() == Settings(_env_file=None)


_PASS_ON = {"settings.py", "decode_pool.py", "schema_check.py", "environment.py", "litserve_seams.py", "replica.py"}


def test_only_settings_reads_the_environment() -> None:
    offenders = [
        str(path)
        for path in (ROOT / "tru_vlm").rglob("*.py")
        # These choose what their children inherit (PATH, vLLM's variables and the like), or learn from LitServe which
        # worker they are; they read no setting.
        if path.name not in _PASS_ON and re.search(r"\bos\.(environ|getenv)\b", path.read_text())
    ]
    assert not offenders
