"""Captions written while a store is prepared: stops change no byte, and no finished text is asked for again."""

import json
from functools import partial

import pytest
import torch
from PIL import Image

from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.prepare_store import prepare
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner
from tavq_plugin.preprocessing.shard_captions import FOLDER, ShardCaptions
from tavq_plugin.text import ShardedStore, TextEncoder
from tavq_plugin.text.manifest import find_faults

COLOURS = ("red", "blue", "green", "white", "black", "grey", "pink")


class Painter:
    """Writes each image's colour and its place in the batch, so that another batch would give another text."""

    name, revision = "painter", "1"

    def __init__(self, calls=None, stop_after=None):
        self.calls, self.stop_after = [] if calls is None else calls, stop_after  # sizes of all batches

    def __call__(self, images, prompts, attempt=0):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        pixels = [image.getpixel((0, 0)) for image in images]
        return [f"A dog of {len(set(p))} shades, {sum(p)}, is number {i}." for i, p in enumerate(pixels)]


@pytest.fixture
def load(bert_folder):
    return partial(TextEncoder.from_pretrained, bert_folder, dtype=torch.float32)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(13):
        Image.new("RGB", (6, 5), COLOURS[i % 7]).save(folder / f"{i:02}.png")
    return folder


def painted(painter=Painter, **settings):
    return ShardCaptions(painter, "painter", "1", **{"batch": 2, **settings})


def run(data, out, load, captions, **settings):
    return prepare(data, out, load, captions=captions, **{"shard_size": 5, "progress": False, **settings})


def content(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_the_store_equals_that_of_a_captions_file(tmp_path, images, load):
    caption_images(images, tmp_path / "c.jsonl", Painter(), batch=1, progress=False)
    run(tmp_path / "c.jsonl", tmp_path / "two", load, None)
    done = run(images, tmp_path / "one", load, painted(batch=1))
    assert (done.texts, done.shards, done.made, done.rejected, done.finished) == (13, 3, 3, 0, True)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert {name: one[name] for name in two} == two
    lines = b"".join(one[f"{FOLDER}/shard-0000{i}.jsonl"] for i in range(3))
    assert lines == (tmp_path / "c.jsonl").read_bytes()
    assert not list(find_faults(tmp_path / "one"))


def test_a_second_run_asks_nothing_and_loads_no_model(tmp_path, images, load):
    run(images, tmp_path / "s", load, painted())
    before = content(tmp_path / "s")
    again = run(images, tmp_path / "s", load, ShardCaptions(None, "painter", "1", batch=2))
    assert (again.made, again.finished) == (0, True) and content(tmp_path / "s") == before
    (tmp_path / "s" / "shard-00001.safetensors").unlink()  # the texts are kept
    assert run(images, tmp_path / "s", load, ShardCaptions(None, "painter", "1", batch=2)).made == 1
    assert content(tmp_path / "s") == before
    with pytest.raises(ValueError, match="do not mix"):
        run(images, tmp_path / "s", load, painted(prompt="What?"))


def test_parts_of_an_array_job_give_the_same_bytes(tmp_path, images, load):
    run(images, tmp_path / "loop", load, painted())
    done = [run(images, tmp_path / "parts", load, painted(), part=(i, 2)) for i in (1, 0)]
    assert [(d.made, d.finished) for d in done] == [(1, False), (2, True)]
    assert content(tmp_path / "parts") == content(tmp_path / "loop")


@pytest.mark.slow
def test_two_workers_on_ray_give_the_same_bytes(tmp_path, images, load):
    pytest.importorskip("ray", reason="Ray is not installed (extra: scale)")
    run(images, tmp_path / "loop", load, painted())
    assert run(images, tmp_path / "ray", load, painted(), ray="", workers=2).made == 3
    assert content(tmp_path / "ray") == content(tmp_path / "loop")


@pytest.mark.parametrize("torn", [b"", b'{"id": "half a li', "whole"])
@pytest.mark.parametrize("after", [1, 4])
def test_a_stop_costs_one_batch_and_changes_no_text(tmp_path, images, load, after, torn):
    straight, stopped, resumed = [], [], []
    run(images, tmp_path / "straight", load, painted(partial(Painter, straight)))
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "s", load, painted(partial(Painter, stopped, after)))
    file = max((tmp_path / "s" / FOLDER).glob("shard-0000?.jsonl"))
    if torn == "whole":  # killed between two lines of a batch
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:-1]))
    else:
        file.write_bytes(file.read_bytes() + torn)
    assert run(images, tmp_path / "s", load, painted(partial(Painter, resumed))).finished
    assert sum(stopped) + sum(resumed) <= sum(straight) + 2 and sum(stopped) < sum(straight)
    assert content(tmp_path / "s") == content(tmp_path / "straight")


def test_an_image_without_a_text_is_rejected_and_asked_for_again(tmp_path, images, load, server):
    (images / "03.png").write_bytes(b"none")
    server.script[:] = ["A red dog runs.", 500, "A blue boat."]
    asked = ShardCaptions(
        partial(ServerCaptioner, server.url, "m", retries=0, concurrency=1), "m", prompt="Say it.", batch=4
    )
    done = run(images, tmp_path / "s", load, asked)
    assert (done.texts, done.rejected, done.finished) == (11, 2, True)
    rows = [json.loads(line) for line in (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"].split(":")[0]) for row in rows] == [(2, "01.png"), (4, "03.png")]
    assert "HTTP 500" in rows[0]["reason"] and "01.png" not in list(ShardedStore.open(tmp_path / "s").ids)
    requests = len(server.seen)
    again = run(images, tmp_path / "s", load, asked)
    assert (again.texts, again.rejected, again.made, again.finished) == (12, 1, 1, True)
    assert len(server.seen) == requests + 1
    assert list(ShardedStore.open(tmp_path / "s").ids) == [f"{i:02}.png" for i in range(13) if i != 3]


def test_short_captions_go_with_the_image(tmp_path, images, load, server):
    (images / "00.txt").write_text("a red thing")
    asked = ShardCaptions(partial(ServerCaptioner, server.url, "m"), "m", with_captions=True)
    run(images, tmp_path / "s", load, asked, shard_size=20)
    prompts = {body["messages"][0]["content"][1]["text"] for body, _ in server.seen}
    assert len(prompts) == 2 and any("A red thing." in prompt for prompt in prompts)
    with pytest.raises(ValueError, match="at least 1 image"):
        painted(batch=0)


def test_a_missing_server_stops_the_run_and_leaves_no_shard(tmp_path, images, load):
    asked = ShardCaptions(partial(ServerCaptioner, "http://127.0.0.1:9", "m", retries=0), "m")
    with pytest.raises(ConnectionError, match="is the server running"):
        run(images, tmp_path / "s", load, asked)
    assert not list((tmp_path / "s").glob("shard*"))
