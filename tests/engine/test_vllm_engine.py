"""What is the vllm engine's own: its configuration, its caches, its errors, its processes."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import psutil
import pytest
from engine_helpers import drive, request, video
from support import ROOT, require_vllm

from demo_model.generator import clip_spec, render_frame
from demo_model.questions import DEFAULT_QUESTION
from tru_vlm.engine import create_engine
from tru_vlm.engine.base import FailEvent, MediaInput
from tru_vlm.engine.cores import num_compute_threads
from tru_vlm.engine.vllm import installed, runner
from tru_vlm.engine.vllm.config import ONE_PROCESS, VllmConfig, check_names, engine_arguments
from tru_vlm.engine.vllm.environment import (
    SOCKETS,
    VISIBLE,
    binds_threads,
    guarded_children,
    prepare_environment,
    visible_devices,
)
from tru_vlm.engine.vllm.guardian import MARK, marked
from tru_vlm.engine.vllm.sampling import check_draftable
from tru_vlm.errors import InvalidRequestError
from tru_vlm.settings import SettingsError, load_settings
from tru_vlm.types import GenerationParams

HANG_SECONDS = 60
"""A bound for what hangs, however busy the machine is."""


def until(condition, seconds=HANG_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def arguments(*, binds_threads=False, **config):
    config = VllmConfig("demo", **config)
    return engine_arguments(config, resolved_path="/model", block_tokens=16, binds_threads=binds_threads)


def test_settings_become_vllms_arguments():
    cuda = arguments(
        device="cuda",
        num_devices=2,
        max_batch_size=64,
        max_context_tokens=4096,
        quantization="int4",
        prefix_cache=False,
    )
    expected = {
        "model": "/model",
        "dtype": "bfloat16",
        "quantization": "bitsandbytes",
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "enable_prefix_caching": False,
        "enforce_eager": False,
    }
    assert cuda.items() >= expected.items()
    assert not cuda.keys() & {"max_num_batched_tokens", "num_gpu_blocks_override", "kv_cache_memory_bytes"}
    assert arguments(device="cuda", cuda_graphs=False)["enforce_eager"]
    assert arguments(device="cuda", quantization="fp8")["quantization"] == "fp8"
    cpu = arguments(kv_cache_tokens=1000, prefill_chunk_tokens=16, max_batch_size=32)
    assert (cpu["dtype"], cpu["enforce_eager"]) == ("float32", True)
    assert (cpu["num_gpu_blocks_override"], cpu["max_num_batched_tokens"]) == (64, 32)
    assert arguments()["kv_cache_memory_bytes"] > 0
    assert arguments(media_cache=False)["mm_processor_cache_gb"] == 0
    assert arguments(more={"kv_cache_dtype": "fp8", "block_size": 32}).items() >= {"block_size": 32}.items()


def test_on_a_cpu_vllm_computes_where_it_schedules_unless_it_is_told_otherwise():
    name = "distributed_executor_backend"
    assert arguments()[name] == ONE_PROCESS
    assert name not in arguments(device="cuda")
    assert name not in arguments(binds_threads=True)
    assert name not in arguments(num_devices=2)
    assert name not in arguments(more={"pipeline_parallel_size": 2})
    assert arguments(more={name: "mp"})[name] == "mp"
    assert binds_threads({"VLLM_CPU_OMP_THREADS_BIND": "0-3"})
    assert not binds_threads({"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    assert not binds_threads({})


@pytest.mark.parametrize(
    ("num_engines", "most", "cores", "expected"), [(1, 8, 8, 7), (1, 4, 8, 4), (3, 8, 8, 2), (9, 8, 8, 1), (1, 1, 1, 1)]
)
def test_an_engine_leaves_a_core(num_engines, most, cores, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert num_compute_threads(num_engines, most=most) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization": "int8", "device": "cuda"}, "QUANTIZATION=int8: vLLM.*none, int4, fp8"),
        ({"quantization": "int4"}, "QUANTIZATION=int4: .*needs a CUDA card"),
    ],
)
def test_a_quantization_that_vllm_has_not_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        arguments(**config)


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match=r"no argument 'kv_cache_dtpe'\. Did you mean kv_cache_dtype"):
        check_names({"kv_cache_dtpe": "fp8"}, {"kv_cache_dtype", "seed"})
    with pytest.raises(ValueError, match="max_num_seqs is set by MAX_BATCH_SIZE"):
        check_names({"max_num_seqs": 3}, {"max_num_seqs"})
    with pytest.raises(ValueError, match="video_pruning_rate cannot be set"):
        check_names({"video_pruning_rate": 0.5}, {"video_pruning_rate"})
    check_names({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype"})


@pytest.mark.parametrize("value", ["{", "[]", "3"])
def test_arguments_that_are_no_json_object_are_refused(value):
    with pytest.raises(SettingsError, match=r"VLLM_ENGINE_ARGS=.*it is"):
        load_settings(None, vllm_engine_args=value)


def test_every_argument_is_vllms():
    require_vllm()
    import dataclasses

    from vllm import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    everything = arguments(device="cuda", kv_cache_tokens=64, prefill_chunk_tokens=64, media_cache=False)
    assert everything.keys() | arguments().keys() <= known


def test_a_missing_or_old_vllm_is_told_with_what_helps(monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version", nothing)
    with pytest.raises(ValueError, match=r"MODEL_BACKEND=vllm: .*pip install 'tru-vlm\[vllm\]'"):
        create_engine(load_settings(None, model_backend="vllm"), "cpu")
    monkeypatch.setattr(installed, "version", lambda name: "0.31.2+cu129")
    with pytest.raises(ValueError, match=r"MODEL_BACKEND=vllm: vllm 0.31.2\+cu129 .*0.32 or newer"):
        installed.vllm_version()
    monkeypatch.setattr(installed, "version", lambda name: "0.32.0+cpu")
    assert installed.vllm_version() == "0.32.0+cpu"


def test_mps_is_refused():
    with pytest.raises(ValueError, match="MODEL_BACKEND=vllm: vLLM does not run on mps"):
        create_engine(load_settings(None, model_backend="vllm"), "mps:0")


def test_a_worker_sees_its_own_cards_only():
    assert visible_devices(["cuda:2", "cuda:3"], {}) == "2,3"
    assert visible_devices(["cuda:1"], {VISIBLE: "4,5,GPU-aa"}) == "5"
    assert visible_devices(["cuda"], {VISIBLE: "7"}) == "7"
    with pytest.raises(ValueError, match="has 1 devices; wanted cuda:0, cuda:1"):
        visible_devices(["cuda:0", "cuda:1"], {VISIBLE: "7"})
    environment = {"VLLM_NO_USAGE_STATS": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    prepare_environment(["cuda:1"], environment)
    assert environment == {
        "VLLM_NO_USAGE_STATS": "0",  # the operator's
        "SPT_NOENV": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        VISIBLE: "1",
    }


def test_a_cpu_gets_its_threads_and_what_the_operator_has_set_stays():
    environment = {}
    prepare_environment(["cpu"], environment, num_threads=3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert VISIBLE not in environment
    environment["OMP_NUM_THREADS"] = "5"
    prepare_environment(["cpu"], environment, num_threads=3)
    assert environment["OMP_NUM_THREADS"] == "5"


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="the guardian looks into /proc, and so does vLLM's world")
def test_the_guardian_ends_marked_children_when_its_maker_is_killed():
    code = """
import os, socket, subprocess, sys, time
from tru_vlm.engine.vllm.guardian import Guardian, MARK
guardian = Guardian("mark-of-a-test")
socket.socket(socket.AF_UNIX).bind(str(guardian.folder / "left"))
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
os.environ[MARK] = "mark-of-a-test"
child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid"
subprocess.Popen([sys.executable, "-c", child + "; time.sleep(600)"])
print(other.pid, guardian._process.pid, guardian.folder, flush=True)
time.sleep(600)
"""
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    *pids, folder = maker.stdout.readline().split()
    other, guardian = map(int, pids)
    try:
        assert (Path(folder) / "left").is_socket()
        until(lambda: len(marked("mark-of-a-test")) == 2)
        children = marked("mark-of-a-test")
        maker.kill()
        maker.wait()
        maker.stdout.close()
        until(lambda: all(map(is_gone, [*children, guardian])))
        assert not Path(folder).exists()
        assert not is_gone(other), "it was not marked"
        assert MARK not in os.environ
    finally:
        maker.kill()
        for pid in (other, *marked("mark-of-a-test")):
            psutil.Process(pid).kill()


def test_the_sockets_of_guarded_children_have_a_private_folder_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv(SOCKETS, str(tmp_path))  # the operator's
    with guarded_children("mark-of-another-test") as guardian:
        assert os.environ[SOCKETS] == str(guardian.folder)
    assert os.environ[SOCKETS] == str(tmp_path)
    assert list(tmp_path.iterdir()) == [guardian.folder]
    assert stat.S_IMODE(guardian.folder.stat().st_mode) == 0o700
    (guardian.folder / "left").touch()
    assert not guardian.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="does not start"), guarded_children("mark-of-another-test"):
        raise RuntimeError("vLLM does not start")
    assert list(tmp_path.iterdir()) == []


def test_vllms_sockets_lie_in_the_guardians_folder(vllm_engine):
    assert any(path.is_socket() for path in vllm_engine._guardian.folder.iterdir())


def test_vllm_computes_in_one_process_with_the_engines_threads(vllm_engine):
    family = [process for process in psutil.Process().children(recursive=True) if "VLLM" in process.name()]
    assert [process.name() for process in family] == ["VLLM::EngineCore"]
    assert family[0].environ()["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] == "1"


def test_the_description(vllm_engine, profile):
    said = vllm_engine.description
    assert (said.backend, said.device, said.dtype, said.quantization) == ("vllm", "cpu", "float32", "none")
    assert said.context_tokens == profile.context_tokens
    assert said.weight_bytes == said.full_weight_bytes == 4 * said.num_parameters
    assert set(said.versions) == {"vllm", "torch", "transformers"}
    assert vllm_engine.stats().kv_cache_tokens == 8192


def test_the_parameters_are_counted_as_the_hf_engine_counts_them(vllm_engine, make_engine):
    assert vllm_engine.description.num_parameters == make_engine().description.num_parameters


def test_an_abort_reaches_vllm(vllm_engine):
    before = vllm_engine.stats().num_generated_tokens
    vllm_engine.submit(request("a", video(1), max_tokens=4000, ignore_eos=True))
    while not vllm_engine._jobs["a"].num_generated:
        vllm_engine.step()
    vllm_engine.abort("a")
    until(lambda: not vllm_engine._recorder.num_running and not vllm_engine._recorder.kv_cache_usage)
    made = vllm_engine.stats().num_generated_tokens
    drive(vllm_engine)
    assert vllm_engine.stats().num_generated_tokens == made < before + 4000, "vLLM went on with it"


def test_an_abort_reaches_vllm_wherever_the_handover_is(vllm_engine):
    """After any number of turns of the loop: wherever vLLM's front waits, each time it waits somewhere else."""

    async def submit_and_abort(num_turns):
        vllm_engine.submit(request("a", max_tokens=4000, ignore_eos=True))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        vllm_engine.abort("a")

    before = vllm_engine.stats().num_steps
    for num_turns in range(20):
        asyncio.run_coroutine_threadsafe(submit_and_abort(num_turns), vllm_engine._runner._loop).result(HANG_SECONDS)
        assert [event.finish_reason for event in vllm_engine.step()] == ["abort"]
    drive(vllm_engine, [request("b", max_tokens=2, ignore_eos=True)])  # vLLM has seen all that came before
    until(lambda: not vllm_engine._recorder.num_running)
    assert vllm_engine.stats().num_steps - before < 4000, "vLLM went on with one to its end"


def test_an_aborted_request_that_vllm_has_not_seen_is_never_made(vllm_engine, monkeypatch):
    processed, has_begun, may_go_on, has_ended = runner.processed, *(threading.Event() for _ in range(3))

    def held(*arguments):
        has_begun.set()
        assert may_go_on.wait(HANG_SECONDS)
        patches = processed(*arguments)
        has_ended.set()
        return patches

    before = vllm_engine.stats()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "processed", held)
        vllm_engine.submit(request("a", video(504, 12), max_tokens=400, ignore_eos=True))
        assert has_begun.wait(HANG_SECONDS)
        vllm_engine.abort("a")
        may_go_on.set()
        assert has_ended.wait(HANG_SECONDS)
    usage = drive(vllm_engine, [request("b", max_tokens=20, ignore_eos=True)])["b"].end.usage
    after = vllm_engine.stats()
    assert after.num_generated_tokens - before.num_generated_tokens == usage.completion_tokens == 20
    assert after.num_prompt_tokens - before.num_prompt_tokens == usage.prompt_tokens


def test_media_that_vllm_has_are_not_made_again(vllm_engine, monkeypatch):
    made, processed = [], runner.processed
    monkeypatch.setattr(runner, "processed", lambda item, profile: made.append(item) or processed(item, profile))
    clip = video(501, 8)
    before = vllm_engine.stats()
    texts = [drive(vllm_engine, [request("a", clip)])["a"].text for _ in range(2)]
    after = vllm_engine.stats()
    assert len(made) == 1
    assert after.mm_cache_queries - before.mm_cache_queries == 8  # twice four temporal patches
    assert after.mm_cache_hits - before.mm_cache_hits == 4
    assert texts[0] == texts[1]


def test_media_that_vllm_has_lost_are_sent_again(vllm_engine):
    clip = video(502, 8)
    texts = [drive(vllm_engine, [request("a", clip)])["a"].text]
    # As if the other process had thrown it away: this one believes that it is there.
    cache = vllm_engine._runner.llm.renderer.mm_processor_cache
    other = video(503, 8)
    (key,) = [name for name in cache._cache if name.startswith(f"video-{clip.content_key}-")]
    cache._cache[key.replace(clip.content_key, other.content_key)] = cache._cache[key]
    outcome = drive(vllm_engine, [request("b", other)])["b"]
    assert outcome.reason == "stop"
    assert outcome.text == drive(vllm_engine, [request("b", other)])["b"].text
    texts.append(drive(vllm_engine, [request("a", clip)])["a"].text)
    assert texts[0] == texts[1]


def test_what_vllm_says_of_an_error_is_not_told(vllm_engine, monkeypatch):
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineGenerateError

    from tru_vlm.engine.vllm.engine import as_answer

    async def refuse(*arguments):
        raise VLLMValidationError("secret")
        yield

    async def break_down(*arguments):
        raise EngineGenerateError from OSError("secret")
        yield

    for broken, code in ((refuse, "invalid_value"), (break_down, "internal_error")):
        with monkeypatch.context() as patch:
            patch.setattr(vllm_engine._runner.llm, "generate", broken)
            end = drive(vllm_engine, [request("a")])["a"].end
        assert isinstance(end, FailEvent)
        assert end.error.code == code
        assert "secret" not in end.error.message
    assert as_answer(ValueError("secret")).status == 500


def clip_input(seed):
    spec = clip_spec(seed, num_events=1 + seed % 2)
    times = [index / 2 for index in range(int(min(spec.duration_seconds, 8.0) * 2))]
    frames = np.stack([render_frame(spec, seconds, 96, 128) for seconds in times]).transpose(0, 3, 1, 2)
    return MediaInput("video", np.ascontiguousarray(frames), f"clip-{seed}", tuple(times), (), spec.fps)


def test_greedy_answers_are_the_hf_engines(vllm_engine, make_engine):
    items = [request(str(seed), clip_input(seed), prompt=DEFAULT_QUESTION, max_tokens=64) for seed in range(24)]
    ours = drive(make_engine(max_batch_size=4), items)
    theirs = drive(vllm_engine, items)
    same = sum(ours[item.id].text == theirs[item.id].text for item in items)
    assert len({outcome.text for outcome in ours.values()}) > 12, "the clips are all alike"
    assert same >= 23, [(ours[i.id].text, theirs[i.id].text) for i in items if ours[i.id].text != theirs[i.id].text]


def test_when_vllms_process_dies_the_step_says_so():
    """In a process of its own: the engine cannot be used afterwards."""
    require_vllm()
    code = """
import sys
import psutil
sys.path.insert(0, "tests/engine")
if __name__ == "__main__":
    from engine_helpers import request
    from tru_vlm.engine.vllm.config import VllmConfig
    from tru_vlm.engine.vllm.engine import EngineLostError, VllmEngine
    engine = VllmEngine.load(VllmConfig("demo", kv_cache_tokens=8192, max_batch_size=2))
    engine.submit(request("a", max_tokens=8000, ignore_eos=True))
    while not engine._jobs["a"].num_generated:
        engine.step()
    family = {p: p.name() + " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)}
    family = {process: name for process, name in family.items() if "resource_tracker" not in name}
    (core,) = [process for process, name in family.items() if "EngineCore" in name]
    core.kill()
    try:
        while True:
            assert engine.has_work()
            engine.step()
    except EngineLostError:
        print("LOST")
    engine.close()
    _, alive = psutil.wait_procs(list(family), timeout=10)
    print("LEFT", alive, engine._guardian.folder.exists())
"""
    result = run_apart(code)
    assert "LOST" in result.stdout, result.stdout + result.stderr
    assert "LEFT [] False" in result.stdout, result.stdout


def test_closing_comes_to_an_end_where_vllm_does_not_answer():
    """Neither its process nor its loop: in a process of its own."""
    require_vllm()
    code = """
import threading
import psutil
if __name__ == "__main__":
    from tru_vlm.engine.vllm import runner
    from tru_vlm.engine.vllm.config import VllmConfig
    from tru_vlm.engine.vllm.engine import VllmEngine
    engine = VllmEngine.load(VllmConfig("demo", kv_cache_tokens=2048, max_batch_size=2))
    runner._CLOSE_SECONDS = 1.0
    family = [p for p in psutil.Process().children(recursive=True) if "resource_tracker" not in str(p.cmdline())]
    (core,) = [process for process in family if "EngineCore" in process.name() + str(process.cmdline())]
    core.suspend()
    engine._runner._loop.call_soon_threadsafe(threading.Event().wait)
    engine.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    print("LEFT", alive, engine._guardian.folder.exists())
"""
    result = run_apart(code)
    assert "LEFT [] False" in result.stdout, result.stdout + result.stderr


def run_apart(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False, cwd=ROOT
    )


def test_drafts_and_what_vllm_cannot_do_beside_them():
    assert "speculative_config" not in arguments(device="cuda")
    drafting = arguments(device="cuda", num_speculative_tokens=3)["speculative_config"]
    assert (drafting["method"], drafting["num_speculative_tokens"]) == ("ngram", 3)
    with pytest.raises(ValueError, match=r"NUM_SPECULATIVE_TOKENS: .*DEVICE=cpu: 0"):
        arguments(num_speculative_tokens=3)
    check_draftable(GenerationParams(max_tokens=8, temperature=0.7, top_p=0.9, repetition_penalty=1.2))
    for name, rules in (("min_p", {"min_p": 0.1}), ("logit_bias", {"logit_bias": ((5, 1.0),)})):
        with pytest.raises(InvalidRequestError, match=f"{name}: this server drafts") as error:
            check_draftable(GenerationParams(max_tokens=8, temperature=1.0, **rules))
        assert error.value.param == name
