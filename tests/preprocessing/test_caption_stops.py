"""A captioner that keeps failing stops the run, which then goes on where it stopped; full memory halves the batch."""

import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
from PIL import Image

from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.request_window import in_window
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner

GOOD = "A small red boat lies on the sand beside two wooden houses under a grey sky."


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:02}.png")
    return folder


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asking(server, **settings):
    return ServerCaptioner(server.url, "m", **{"first_wait": 0.01, "timeout": 0.5, "retries": 0, **settings})


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class Cramped:
    """A captioner that has memory for some images only."""

    name, revision = "cramped", None

    def __init__(self, room, error=FULL):
        self.room, self.error, self.calls = room, error, []

    def __call__(self, images, prompts, attempt=0):
        self.calls.append(len(images))
        if len(images) > self.room:
            raise self.error
        return [GOOD] * len(images)


def test_a_server_that_dies_stops_the_run_which_then_goes_on(server, many, tmp_path):
    out = tmp_path / "c.jsonl"
    server.script[:] = [GOOD] * 20 + ["cut"]
    with pytest.raises(
        ConnectionError, match=r"5 requests in a row .* last for \d\d\.png: is the server running"
    ) as stop:
        caption_images(many, out, asking(server, concurrency=2), progress=False)
    assert "The same command goes on where this one stopped" in str(stop.value)
    assert len(rows(out)) == 20 and len(server.seen) < 40
    assert not out.with_name("c.rejected.jsonl").exists()
    time.sleep(0.3)
    after = len(server.seen)
    time.sleep(0.5)
    assert len(server.seen) == after  # no request comes from a run that has stopped
    server.script[:] = [GOOD]
    done = caption_images(many, out, asking(server, concurrency=2), progress=False)
    assert (done.written, done.already_written, done.rejected) == (20, 20, 0)
    assert [row["id"] for row in rows(out)] == [f"{i:02}.png" for i in range(40)]


def test_a_closed_port_in_the_middle_stops_the_run(server, many, tmp_path):
    def die(_):
        server.shutdown()
        server.server_close()
        return GOOD

    server.script[:] = [GOOD] * 9 + [die]
    with pytest.raises(ConnectionError, match="Connection refused|URLError"):
        caption_images(many, tmp_path / "c.jsonl", asking(server, concurrency=1, timeout=5), progress=False)
    assert len(rows(tmp_path / "c.jsonl")) == 10


@pytest.mark.parametrize(("status", "mend"), [(429, "lower --concurrency"), (400, "check --model"), (503, "running")])
def test_the_mend_fits_what_failed(server, many, tmp_path, status, mend):
    server.script[:] = [status]
    with pytest.raises(ConnectionError, match=mend):
        caption_images(many, tmp_path / "c.jsonl", asking(server), progress=False)


def test_the_number_of_failures_in_a_row_is_a_setting(server, many, tmp_path):
    server.script[:] = [GOOD, *[500] * 7, GOOD]
    captioner = asking(server, concurrency=1)
    done = caption_images(many, tmp_path / "a.jsonl", captioner, stop_after=8, progress=False)
    assert (done.written, done.rejected) == (33, 7)
    server.script[:] = [*[500] * 3, GOOD]
    server.seen.clear()
    with pytest.raises(ConnectionError, match="2 requests in a row"):
        caption_images(many, tmp_path / "b.jsonl", captioner, stop_after=2, progress=False)
    server.script[:] = [500]
    with pytest.raises(ValueError, match="stop_after must be"):
        caption_images(many, tmp_path / "b.jsonl", captioner, stop_after=-1, progress=False)


def test_images_that_a_working_server_refuses_do_not_stop_the_run(server, many, tmp_path):
    server.script[:] = [GOOD, *[400] * 12, GOOD]
    done = caption_images(many, tmp_path / "c.jsonl", asking(server, concurrency=1), progress=False)
    assert (done.written, done.rejected) == (28, 12)


def test_broken_images_do_not_stop_the_run(many, tmp_path):
    for i in range(12):
        (many / f"{i:02}.png").write_bytes(b"none")
    done = caption_images(many, tmp_path / "c.jsonl", Cramped(99), progress=False)
    assert (done.written, done.rejected) == (28, 12)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_for_good(many, tmp_path, error):
    cramped, said = Cramped(2, error), []
    done = caption_images(many, tmp_path / "c.jsonl", cramped, batch=8, progress=False, say=said.append)
    assert (done.written, done.rejected) == (40, 0)
    assert cramped.calls[:3] == [8, 4, 2] and set(cramped.calls[3:]) == {2}
    assert said == [f"out of memory with {n} images at once: from now on at most {n // 2}" for n in (8, 4)]
    assert [row["id"] for row in rows(tmp_path / "c.jsonl")] == [f"{i:02}.png" for i in range(40)]


def test_no_memory_for_one_image_stops_the_run_by_name(many, tmp_path):
    with pytest.raises(OSError, match=r"out of memory with one image .*5 requests in a row.* smaller --image-size"):
        caption_images(many, tmp_path / "c.jsonl", Cramped(0), batch=2, progress=False, say=lambda _: None)
    assert rows(tmp_path / "c.jsonl") == []


def test_another_error_of_a_model_is_raised(many, tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        caption_images(many, tmp_path / "c.jsonl", Cramped(0, RuntimeError("shapes differ")), progress=False)


def test_a_slow_answer_holds_up_no_other(server, many, tmp_path):
    seen = []
    server.script[:] = [{"seconds": 1.0}, lambda _: seen.append(time.monotonic()) or GOOD]
    caption_images(many, tmp_path / "c.jsonl", asking(server, concurrency=2, timeout=3), progress=False)
    assert len(seen) == 39 and seen[20] - seen[0] < 1.0  # batches would wait for the slow one
    assert [row["id"] for row in rows(tmp_path / "c.jsonl")] == [f"{i:02}.png" for i in range(40)]


def test_ctrl_c_keeps_the_texts_and_ends_the_requests(server, many, tmp_path):
    out = tmp_path / "c.jsonl"

    def interrupt(_):
        os.kill(os.getpid(), signal.SIGINT)
        return GOOD

    server.script[:] = [GOOD] * 15 + [interrupt, GOOD]
    with pytest.raises(KeyboardInterrupt):
        caption_images(many, out, asking(server, concurrency=3, timeout=3), progress=False)
    time.sleep(0.3)
    asked = len(server.seen)
    assert 10 <= len(rows(out)) <= asked < 30
    done = caption_images(many, out, asking(server, concurrency=3), progress=False)
    assert done.written + done.already_written == 40 and len(server.seen) <= 40 + 6
    assert [row["id"] for row in rows(out)] == [f"{i:02}.png" for i in range(40)]


def test_texts_are_on_the_disk_as_they_come(server, many, tmp_path):
    out, found = tmp_path / "c.jsonl", []

    def look(_):
        time.sleep(0.2)
        found.append(len(rows(out)))
        return GOOD

    server.script[:] = [GOOD] * 10 + [look] + [GOOD]
    caption_images(many, out, asking(server, concurrency=1, timeout=3), progress=False)
    assert found == [10]


def test_the_window_is_never_larger_than_its_size_and_loses_nothing():
    now, most, lock = [0], [0], threading.Lock()

    def work(job, stopped):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.001 * (job % 5))
        with lock:
            now[0] -= 1
        return job * job

    results = [pair for ready in in_window(range(100), work, 7) for pair in ready]
    assert sorted(results) == [(i, i * i) for i in range(100)] and most[0] == 7
    assert list(in_window([], work, 3)) == []


def test_what_one_request_raises_ends_the_window():
    stops = []

    def work(job, stopped):
        if job == 3:
            raise PermissionError("no key")
        stops.append(stopped)
        return job

    with pytest.raises(PermissionError, match="no key"):
        list(in_window(range(1000), work, 2))
    assert len(stops) < 20 and stops[0].is_set()


def in_seconds(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (lambda: "0.3", 0.3, 1.5),
        (lambda: in_seconds(2.2), 1.0, 2.5),  # an HTTP date has whole seconds
        (lambda: in_seconds(-60), 0.0, 0.8),
        (lambda: "later", 0.0, 0.8),
        (lambda: "86400", 0.0, 3.0),  # no longer than longest_wait
    ],
)
def test_the_server_says_when_to_come_back(server, header, least, most):
    server.script[:] = [{"status": 503, "headers": {"Retry-After": header()}}, GOOD]
    began = time.monotonic()
    captioner = asking(server, retries=1, longest_wait=2.5)
    assert captioner.ask(Image.new("RGB", (4, 4)), "What?").text == GOOD
    assert least <= time.monotonic() - began <= most + 0.3


def test_a_stopped_run_does_not_wait_for_retries(server):
    server.script[:], stopped = [500], threading.Event()
    threading.Timer(0.1, stopped.set).start()
    began = time.monotonic()
    asking(server, retries=4, first_wait=30).ask(Image.new("RGB", (4, 4)), "What?", 0, stopped)
    assert time.monotonic() - began < 5 and len(server.seen) == 1
