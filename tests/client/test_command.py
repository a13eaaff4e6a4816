"""The command `tru-vlm` as a process of its own, against a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from leaving import Leaving
from support import ROOT, Server, free_port

QUESTION = "What happens in this video?"
ANSWER = "A red circle moves left."
TIMEOUT = 120
COMMAND = (sys.executable, "-m", "tru_vlm")


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


# ---- ask, plan, models -----------------------------------------------------------------------------------------------


def test_ask_puts_the_answer_on_stdout_and_the_rest_on_stderr(server: Server, clip: Path) -> None:
    result = run("ask", clip, QUESTION, "--temperature", "0", TRU_BASE_URL=server.base)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ANSWER + "\n"
    assert "8 frames of 0:04.0" in result.stderr
    assert re.search(r"stop; first token after [\d.]+ s, all after [\d.]+ s", result.stderr)


def test_ask_as_json_with_options(server: Server, clip: Path) -> None:
    options = ("--nframes", "4", "--start", "1", "--end", "3", "--set", "stop=left", "--set", "temperature=0")
    url = f"{server.base}/static/samples/{clip.name}"
    for video in (clip, url):
        result = run("ask", video, QUESTION, "--json", "--base-url", server.base, *options)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["video"]["num_frames"] == 4
        assert min(answer["video"]["frame_timestamps"]) >= 1
        assert answer["text"].endswith("moves ")


def test_upload_once_and_ask_a_model_by_name(server: Server, clip: Path) -> None:
    kept = run("upload", clip, "--base-url", server.base)
    assert kept.returncode == 0, kept.stderr
    assert re.fullmatch(r"[0-9a-f]{64}\n", kept.stdout)
    again = json.loads(run("upload", clip, "--json", "--base-url", server.base).stdout)
    assert (again["id"], again["filename"]) == (kept.stdout.strip(), clip.name)
    for model, status, output in (("demo", 0, ANSWER + "\n"), ("other", 1, "")):
        options = ("--model", model, "--temperature", "0", "--base-url", server.base)
        result = run("ask", kept.stdout.strip(), QUESTION, *options)
        assert (result.returncode, result.stdout) == (status, output), result.stderr
    assert "other" in result.stderr


def test_errors_are_sentences_and_statuses(server: Server, clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("This is not a video.\n" * 100)
    port = free_port()
    cases = [
        (("ask", text, "What?", "--base-url", server.base), 1, "not a video"),
        (("ask", clip, "What?", "--fps", "-1", "--base-url", server.base), 1, "fps"),
        (("ask", tmp_path / "none.mp4", "What?", "--base-url", server.base), 2, "none.mp4"),
        (("ask", clip, "What?", "--set", "fsp=1", "--base-url", server.base), 2, "fsp"),
        (("models", "--base-url", f"http://127.0.0.1:{port}"), 3, str(port)),
    ]
    for arguments, status, word in cases:
        result = run(*arguments)
        assert result.returncode == status, result.stderr
        assert word in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_ctrl_c_stops_the_server_s_work_too(server: Server, clip: Path) -> None:
    leaving = Leaving(server)
    arguments = ("ask", clip, QUESTION, "--max-tokens", "2000", "--set", "ignore_eos=true", "--base-url", server.base)
    # Tests that run in a shell's background inherit an ignored SIGINT, and so would the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        with leaving.during("generating"):
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert b"Traceback" not in told


def test_plan_tells_times_and_tokens(server: Server, clip: Path) -> None:
    result = run("plan", clip, QUESTION, "--nframes", "4", "--base-url", server.base)
    assert result.returncode == 0, result.stderr
    assert "4 frames of 128x96" in result.stdout
    assert "0.00" in result.stdout
    plan = json.loads(run("plan", clip, "--max-frames", "100000", "--json", "--base-url", server.base, "--fit").stdout)
    assert plan["fits"] is True
    too_long = run("plan", clip, "x " * 40_000, "--base-url", server.base)
    assert too_long.returncode == 1
    assert "tokens of prompt" in too_long.stdout


def test_models_and_version(server: Server) -> None:
    assert "demo" in run("models", "--base-url", server.base).stdout
    assert json.loads(run("models", "--json", "--base-url", server.base).stdout)[0]["id"] == "demo"
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run("--version").stdout)


# ---- bench, batch ----------------------------------------------------------------------------------------------------


def test_bench_counts_and_measures(server: Server, clip: Path) -> None:
    result = run("bench", clip, QUESTION, "-n", "6", "-c", "3", "--json", "--base-url", server.base)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["requests"], report["at_once"], report["failed"]) == (6, 3, 0)
    assert report["requests_per_second"] == pytest.approx(6 / report["wall_seconds"])
    for key in ("time_to_first_token_seconds", "total_seconds"):
        assert 0 < report[key]["p50"] <= report[key]["p99"] <= report[key]["max"]
    failing = run("bench", clip, QUESTION, "-n", "2", "--set", "fps=-1", "--base-url", server.base)
    assert failing.returncode == 1
    assert "2 failed: invalid_value" in failing.stdout


def test_batch_resumes_and_repeats_nothing(server: Server, clip: Path, tmp_path: Path) -> None:
    items, results = tmp_path / "items.jsonl", tmp_path / "items.results.jsonl"
    lines = [
        {"id": "a", "video": str(clip), "prompt": QUESTION, "temperature": 0},
        {"id": "b", "video": str(tmp_path / "none.mp4"), "prompt": QUESTION},
        {"id": "c", "video": str(clip), "prompt": QUESTION, "fps": -1},
    ]
    items.write_text("\n".join(map(json.dumps, lines)) + "\n")

    def batch() -> tuple[int, dict[str, int], dict[str, dict[str, object]]]:
        result = run("batch", items, "-c", "2", "--json", "--base-url", server.base)
        assert "Traceback" not in result.stderr
        records = [json.loads(line) for line in results.read_text().splitlines()]
        assert len({record["id"] for record in records}) == len(records)
        return result.returncode, json.loads(result.stdout), {record["id"]: record for record in records}

    status, counts, records = batch()
    assert (status, counts) == (1, {"items": 3, "asked": 3, "failed": 2})
    assert records["a"]["answer"]["text"] == ANSWER  # type: ignore[index]
    assert records["c"]["error"]["param"] == "fps"  # type: ignore[index]

    del lines[2]["fps"]
    lines[1]["video"] = str(clip)
    items.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with results.open("a") as file:
        file.write('{"id": "c", "item": "cut o')  # as a crash leaves it
    first = records["a"]["answer"]["id"]  # type: ignore[index]
    status, counts, records = batch()
    assert (status, counts) == (0, {"items": 3, "asked": 2, "failed": 0})
    assert records["a"]["answer"]["id"] == first  # type: ignore[index]
    assert batch()[1] == {"items": 3, "asked": 0, "failed": 0}

    lines[0]["fps"] = 1
    items.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert batch()[1] == {"items": 3, "asked": 1, "failed": 0}


def test_batch_reads_all_before_it_asks(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    good = '{"video": "a.mp4", "prompt": "?"}\n'
    for line, word in (
        ("{", "line 2"),
        ('{"video": "a.mp4"}', "prompt"),
        ('{"video": "a.mp4", "prompt": "?", "fsp": 1}', "fsp"),
        ('{"video": "a.mp4", "prompt": "?", "id": "1"}', "twice"),
    ):
        items.write_text(good + line)
        result = run("batch", items)
        assert result.returncode == 2
        assert word in result.stderr
        assert not (tmp_path / "items.results.jsonl").exists()


def test_batch_goes_on_when_the_server_was_away(server: Server, clip: Path, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"video": str(clip), "prompt": QUESTION, "temperature": 0}))
    process = run("batch", items, "--base-url", f"http://127.0.0.1:{free_port()}", "--retries", "0")
    assert process.returncode == 3, process.stderr
    assert run("batch", items, "--base-url", server.base).returncode == 0


# ---- doctor, serve ---------------------------------------------------------------------------------------------------


def test_doctor_tells_what_is_wrong(server: Server, tmp_path: Path) -> None:
    taken = server.base.rpartition(":")[2]
    bad = run("doctor", "--json", PORT=taken, MODEL_PATH=str(tmp_path), STORAGE_DIR=str(tmp_path / "storage"))
    assert bad.returncode == 1
    failed = {finding["name"] for finding in json.loads(bad.stdout) if finding["state"] == "failed"}
    assert failed == {f"model {tmp_path.name}", "port"}
    wrong = run("doctor", DEFAULT_VIDEO_FPS="fast")
    assert wrong.returncode == 1
    assert "DEFAULT_VIDEO_FPS" in wrong.stdout
    good = run("doctor", PORT=str(free_port()), STORAGE_DIR=str(tmp_path / "storage"))
    assert good.returncode == 0, good.stdout
    assert "failed" not in good.stdout


def test_serve_is_the_server_and_its_options_win(server: Server) -> None:
    taken = server.base.rpartition(":")[2]
    for arguments, variables in ((("serve", "--port", taken), {}), ((), {"PORT": taken})):
        result = run(*arguments, **variables)
        assert result.returncode == 1
        assert f"PORT={taken}" in result.stderr
    assert run("serve", "--port", "80").returncode == 2
