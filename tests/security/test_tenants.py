"""Nobody learns from a cache, an address or an id what another tenant has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests
from client import QUESTION, TIMEOUT

from tru_vlm.principal import ANONYMOUS, Principal
from tru_vlm.video.media import EffectiveSampling
from tru_vlm.video.service import content_key


def ask(keyed, name: str, clip: Path) -> dict[str, Any]:
    with clip.open("rb") as file:
        response = requests.post(
            keyed.base + "/v1/inference/upload",
            files={"video": file},
            data={"prompt": QUESTION, "temperature": "0", "max_tokens": "4", "nframes": "6"},
            headers=keyed.bearer(name),
            timeout=TIMEOUT,
        )
    assert response.status_code == 200, response.text
    return response.json()


def frame_status(keyed, name: str, answer: dict[str, Any]) -> int:
    url = keyed.base + answer["video"]["frames_url"].replace("{index}", "0")
    return requests.get(url, headers=keyed.bearer(name), timeout=TIMEOUT).status_code


def test_caches_and_frames_are_a_tenant_s_own(keyed, clip: Path) -> None:
    alice = ask(keyed, "alice", clip)
    bob = ask(keyed, "bob", clip)
    assert bob["text"] == alice["text"]
    assert bob["usage"]["cached_tokens"] == 0, "the same video and words, and nothing of alice's is found"
    assert bob["video"]["frames_url"] != alice["video"]["frames_url"]
    assert ask(keyed, "bobs-laptop", clip)["usage"]["cached_tokens"] > 0, "the same tenant shares"
    assert frame_status(keyed, "alice", alice) == 200
    assert frame_status(keyed, "bob", alice) == 404
    assert frame_status(keyed, "bobs-laptop", bob) == 200


def test_words_alone_are_not_shared_either(keyed) -> None:
    def cached(name: str) -> int:
        body = {"messages": [{"role": "user", "content": "one two three four " * 40}], "max_tokens": 1}
        url = keyed.base + "/v1/chat/completions"
        answer = requests.post(url, json=body, headers=keyed.bearer(name), timeout=TIMEOUT).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("alice") == 0
    assert cached("alice") > 0
    assert cached("bob") == 0


def test_every_tenant_has_a_salt_of_its_own() -> None:
    tenants = ["public", "a", "b", "alice"]
    salts = [Principal("n", tenant, "c").cache_salt for tenant in tenants]
    assert len(set(salts)) == len(tenants)
    assert all(len(salt) == 16 and int(salt, 16) >= 0 for salt in salts)
    assert ANONYMOUS.cache_salt == salts[0]


def test_a_frame_key_begins_with_its_tenant_and_stays_a_digest() -> None:
    sampling = EffectiveSampling("video", patch_size=16, min_pixels=1, max_pixels=2)
    salts = ["0" * 16, "f" * 16]
    keys = [content_key("ab" * 32, sampling, reader="auto", device="cpu", salt=salt) for salt in salts]
    assert [key[:16] for key in keys] == salts
    assert all(len(key) == 64 for key in keys)


def test_kept_videos_are_a_tenant_s_own(keyed, clip: Path) -> None:
    with clip.open("rb") as file:
        kept = requests.post(
            keyed.base + "/v1/videos", files={"video": file}, headers=keyed.bearer("bob"), timeout=TIMEOUT
        )
    assert kept.status_code == 201, kept.text
    url = f"{keyed.base}/v1/videos/{kept.json()['id']}"
    for path in ("", "/content", "/thumbnail", "/frames"):
        assert requests.get(url + path, headers=keyed.bearer("alice"), timeout=TIMEOUT).status_code == 404, path
        assert requests.get(url + path, headers=keyed.bearer("bobs-laptop"), timeout=TIMEOUT).status_code == 200, path
    assert requests.get(keyed.base + "/v1/videos", headers=keyed.bearer("alice"), timeout=TIMEOUT).json()["data"] == []
    ask = {"video_id": kept.json()["id"], "prompt": QUESTION, "generation_params": {"max_tokens": 1}}
    for name, status in (("alice", 404), ("bob", 200)):
        answer = requests.post(keyed.base + "/v1/inference/url", json=ask, headers=keyed.bearer(name), timeout=TIMEOUT)
        assert answer.status_code == status, answer.text
    with clip.open("rb") as file:
        own = requests.post(
            keyed.base + "/v1/videos", files={"video": file}, headers=keyed.bearer("alice"), timeout=TIMEOUT
        )
    assert own.status_code == 201, "new to alice, whoever else has it"
