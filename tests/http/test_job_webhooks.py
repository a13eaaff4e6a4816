"""Webhooks of jobs over HTTP: refused by field, told once, read in the job, and not lost when the server is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from client import QUESTION, TIMEOUT, error_of
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from scraping import grown, scrape, scrape_until
from standardwebhooks import Webhook as Verifier
from support import Server, start_server
from test_jobs import get, item, submit, submit_lines, until_ended
from test_jobs_restart import kill_all
from watching import Brake
from webhook_receiver import SECRET, Received, receiver


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("hooked"), WEBHOOK_RETRY_SECONDS="0.05", WEBHOOK_MAX_ATTEMPTS="3")
    yield server
    server.stop()


def webhook_of(server: Server, job: dict[str, Any], *statuses: str) -> dict[str, Any]:
    """The job's webhook, as soon as it has one of these statuses."""
    deadline = time.monotonic() + TIMEOUT
    while (state := get(server, f"/v1/jobs/{job['id']}").json()["webhook"])["status"] not in statuses:
        assert time.monotonic() < deadline, state
    return state


def check_is_described(server: Server, message: Received) -> None:
    """The message is what the server's description says of it, headers included."""
    document = get(server, "/openapi.json").json()
    registry = Registry().with_resource("doc:", Resource(document, DRAFT202012))
    (operation,) = document["webhooks"]["jobEnded"].values()
    body = operation["requestBody"]["content"][message.headers["content-type"]]["schema"]
    signed = {name for name in message.headers if name.startswith("webhook-")}
    assert signed == {parameter["name"] for parameter in operation["parameters"]}
    values = [(json.loads(message.body), body)]
    values += [(message.headers[parameter["name"]], parameter["schema"]) for parameter in operation["parameters"]]
    for value, schema in values:
        absolute = json.loads(json.dumps(schema).replace('"#/', '"doc:#/'))
        Draft202012Validator(absolute, registry=registry).validate(value)
    described = document["components"]["schemas"]["JobSummary"]["properties"]
    assert json.loads(message.body)["data"].keys() == described.keys()


def test_the_end_of_a_batch_is_told_and_no_secret_shows(hooked: Server) -> None:
    before = scrape(hooked.base)
    with receiver(500, 204) as one:
        webhook = {"url": one.url("/hook?token=in-the-query"), "secret": SECRET}
        submitted = submit(hooked, item(hooked), webhook=webhook)
        job = submitted.json()
        assert submitted.status_code == 202, submitted.text
        assert (job["webhook"]["status"], job["webhook"]["url"]) == ("waiting", one.url("/hook"))
        done = until_ended(hooked, job)
        state = webhook_of(hooked, job, "delivered")
        assert (state["attempts"], state["status_code"], state["error"]) == (2, 204, None)
        after = scrape_until(hooked.base, lambda now: grown(before, now, "webhook_deliveries_total") == 2)
    assert grown(before, after, "webhook_deliveries_total", outcome="retried") == 1
    assert grown(before, after, "webhook_deliveries_total", outcome="delivered") == 1
    assert grown(before, after, "job_items_total", kind="batch", outcome="succeeded") == 1
    assert grown(before, after, "jobs", kind="batch", status="succeeded") == 1
    first, second = one.received
    assert first.id == second.id
    assert second.path == "/hook?token=in-the-query"
    told = Verifier(SECRET).verify(second.body, second.headers)
    check_is_described(hooked, second)
    assert told["type"] == "job.succeeded"
    assert told["timestamp"].endswith("Z")
    left_out = {"webhook", "timeline", "answer"}
    assert told["data"] == {name: value for name, value in done.items() if name not in left_out}
    shown = [submitted.text, json.dumps(done), get(hooked, "/v1/jobs").text, hooked.log.read_text(), str(told)]
    for text in shown:
        assert SECRET not in text
        assert "in-the-query" not in text


def test_a_file_and_a_long_video_have_webhooks_and_a_cancelled_job_is_told(hooked: Server) -> None:
    with receiver() as one:
        webhook = {"url": one.url(), "secret": SECRET}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/inference/url", "body": item(hooked)}
        video = {
            "kind": "long_video",
            "video_url": item(hooked)["video_url"],
            "prompt": QUESTION,
            "span_seconds": 2,
            "webhook": webhook,
        }
        with Brake(hooked):  # neither ends before the one is cancelled
            file = submit_lines(hooked, line, webhook=json.dumps(webhook))
            assert file.status_code == 202, file.text
            long = requests.post(f"{hooked.base}/v1/inference/batch", json=video, timeout=TIMEOUT)
            assert long.status_code == 202, long.text
            requests.delete(f"{hooked.base}/v1/jobs/{long.json()['id']}", timeout=TIMEOUT)
        until_ended(hooked, file.json())
        one.wait_for(2)
        told = {message["data"]["id"]: message["type"] for message in (json.loads(r.body) for r in one.received)}
    assert told == {file.json()["id"]: "job.succeeded", long.json()["id"]: "job.cancelled"}


def test_one_that_is_never_taken_is_given_up(hooked: Server) -> None:
    with receiver(404) as one:
        job = submit(hooked, item(hooked), webhook={"url": one.url(), "secret": SECRET}).json()
        state = webhook_of(hooked, job, "failed")
        assert len(one.received) == 3
    assert (state["attempts"], state["status_code"], state["next_attempt_at"]) == (3, 404, None)
    assert state["error"] == "The receiver answered 404."
    assert get(hooked, f"/v1/jobs/{job['id']}").json()["status"] == "succeeded", "the job itself is not touched"


@pytest.mark.parametrize(
    ("webhook", "param", "code"),
    [
        ("http://127.0.0.1:9000/", "webhook", "invalid_value"),
        ({"secret": SECRET}, "webhook.url", "missing_field"),
        ({"url": "http://127.0.0.1:9000/"}, "webhook.secret", "missing_field"),
        ({"url": "http://127.0.0.1:9000/", "secret": "whsec_mine"}, "webhook.secret", "invalid_value"),
        ({"url": "http://127.0.0.1:9000/", "secret": SECRET, "events": []}, "webhook.events", "unknown_field"),
        ({"url": "file:///etc/passwd", "secret": SECRET}, "webhook.url", "url_not_allowed"),
        ({"url": "http://user:pw@127.0.0.1:9000/", "secret": SECRET}, "webhook.url", "url_not_allowed"),
        ({"url": "http://127.0.0.1:22/", "secret": SECRET}, "webhook.url", "url_not_allowed"),
        ({"url": "http://169.254.169.254/latest/", "secret": SECRET}, "webhook.url", "url_not_allowed"),
        ({"url": "http://[::ffff:169.254.169.254]/", "secret": SECRET}, "webhook.url", "url_not_allowed"),
    ],
)
@pytest.mark.parametrize("kind", ["items", "lines", "long_video"])
def test_what_is_refused(server: Server, kind: str, webhook: Any, param: str, code: str) -> None:
    if kind == "items":
        response = submit(server, item(server), webhook=webhook)
    elif kind == "lines":
        if not isinstance(webhook, dict):
            param, code = "webhook", "invalid_json"
        line = {"custom_id": "a", "method": "POST", "url": "/v1/inference/url", "body": item(server)}
        response = submit_lines(server, line, webhook=json.dumps(webhook))
    else:
        fields = {"kind": "long_video", "span_seconds": 2, "video_url": item(server)["video_url"], "prompt": QUESTION}
        response = requests.post(
            f"{server.base}/v1/inference/batch", json={**fields, "webhook": webhook}, timeout=TIMEOUT
        )
    assert response.status_code == 400, response.text
    assert (error_of(response)["param"], error_of(response)["code"]) == (param, code)
    assert "whsec_m" not in response.text.lower(), "nor is a bad secret repeated"


def test_a_server_that_is_killed_between_the_end_and_the_message_tells_it_once(tmp_path: Path) -> None:
    with receiver(is_down=True) as one:
        server = start_server(tmp_path, WEBHOOK_RETRY_SECONDS="0.2")
        survivors: list[psutil.Process] = []
        try:
            job = submit(server, item(server), webhook={"url": one.url(), "secret": SECRET}).json()
            until_ended(server, job)
            survivors = psutil.Process(server.process.pid).children(recursive=True)
            kill_all(server)
            one.go_up()
            server = start_server(tmp_path, WEBHOOK_RETRY_SECONDS="0.2")
            state = webhook_of(server, job, "delivered")
            (message,) = one.received
            assert Verifier(SECRET).verify(message.body, message.headers)["data"]["id"] == job["id"]
            assert state["status_code"] == 204
            database = server.storage / "jobs.sqlite3"
            assert database.stat().st_mode & 0o077 == 0, "it holds the secrets"
        finally:
            server.stop()
            psutil.wait_procs(survivors, timeout=TIMEOUT)
