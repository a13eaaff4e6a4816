"""Parts of a step in threads of their own: the same answers, and nothing runs on behind an error."""

import threading

import pytest
import torch
from engine_helpers import drive, image, recorded_tokens, request, video

from tru_vlm.engine import cores
from tru_vlm.engine.hf.side_by_side import SideBySide
from tru_vlm.engine.hf.vision import VisionEncoder


@pytest.fixture
def threads():
    threads = SideBySide(3)
    yield threads
    threads.close()


def test_parts_run_at_once_and_results_come_in_order(threads):
    meeting = threading.Barrier(3)
    seen = threads.run([lambda number=number: (meeting.wait(30), number)[1] for number in range(3)])
    assert seen == [0, 1, 2]
    assert threads.run([lambda: "alone"]) == ["alone"]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_raised_when_the_other_parts_have_ended(failing, threads):
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def fail():
        assert begun.wait(30)
        may_end.set()
        raise ValueError("the part's own")

    def go_on():
        begun.set()
        assert may_end.wait(30)
        ended.append(True)

    parts = [go_on, go_on]
    parts[failing] = fail
    with pytest.raises(ValueError, match="the part's own"):
        threads.run(parts)
    assert ended == [True]


def test_a_step_in_parts_answers_as_in_one(make_engine):
    items = [
        request("hello", video(1, 6, 96, 160), prompt="Hello, who are you?", max_tokens=20, ignore_eos=True),
        request("image", image(2, 96, 64), prompt="Which colours are there?", max_tokens=20, ignore_eos=True),
        request("begin", video(3, 4, 96, 160), prompt="When does it begin?", max_tokens=20, ignore_eos=True),
        request("long", video(4, 20, 96, 160), prompt="Describe the video second by second.", max_tokens=20),
    ]
    answers, parts = [], []
    for num_threads in (1, 2):
        engine = make_engine(step_threads=num_threads)
        run = engine._threads.run
        engine._threads.run = lambda given, run=run: parts.append(len(given)) or run(given)
        answers.append(recorded_tokens(engine))
        drive(engine, items)
        assert max(parts) == num_threads
        engine.close()
    assert answers[0] == answers[1]
    assert len({tuple(tokens) for tokens in answers[0].values()}) == len(items)


def test_features_in_parts_equal_those_at_once(model, profile, threads):
    medium = video(1, 20, 96, 160)
    with torch.inference_mode():
        whole = VisionEncoder(model.model.visual, profile, "cpu").encode(medium, 1, 10)
        parts = VisionEncoder(model.model.visual, profile, "cpu", threads).encode(medium, 1, 10)
    torch.testing.assert_close(parts.embeddings, whole.embeddings, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.deepstack, whole.deepstack, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_compute_threads", "num_cores", "num_engines", "expected"),
    [(1, 2, 1, 2), (3, 4, 1, 1), (1, 1, 1, 1), (1, 2, 2, 1)],
)
def test_two_threads_where_an_operation_has_one_and_a_core_is_left(
    *, num_compute_threads, num_cores, num_engines, expected, monkeypatch
):
    monkeypatch.setattr(cores, "_num_cores", lambda: num_cores)
    assert cores.num_step_threads(num_engines, num_compute_threads=num_compute_threads) == expected
