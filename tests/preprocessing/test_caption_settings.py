"""Settings and the image itself are part of a caption file; shards, limits and flagged texts choose what is asked."""

import json

import pyarrow.parquet
import pytest
from PIL import Image

from tavq_plugin.data.read import read_records
from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner
from tavq_plugin.preprocessing.shard_captions import ShardCaptions

GOOD = "A small red boat lies on the sand beside two wooden houses under a grey sky."
REFUSAL = "I'm sorry, but I can't help with that image."


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asking(server, **settings):
    return ServerCaptioner(server.url, "m", **{"first_wait": 0.01, "timeout": 3, "retries": 0, **settings})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("other", "image_size", "words"),
    [
        ({"temperature": 0.7}, None, "temperature 0.0, but this run uses temperature 0.7"),
        ({"max_new_tokens": 9}, None, "max_new_tokens 512, but this run uses max_new_tokens 9"),
        ({"revision": "r2"}, None, "revision None, but this run uses revision 'r2'"),
        ({"extra_body": {"top_p": 0.5}}, None, "its defaults, but this run uses extra_body"),
        ({}, 64, "but this run uses image_size 64"),
    ],
)
def test_other_settings_are_refused_by_name(server, pictures, tmp_path, ending, other, image_size, words):
    out = tmp_path / f"c.{ending}"
    caption_images(pictures, out, asking(server), progress=False)
    before, requests = out.read_bytes(), len(server.seen)
    with pytest.raises(ValueError, match="do not mix; give another --out") as refused:
        caption_images(pictures, out, asking(server, **other), image_size=image_size, progress=False)
    assert words in str(refused.value) and len(server.seen) == requests
    if ending == "jsonl":
        assert out.read_bytes() == before
    with pytest.raises(ValueError, match="prompt"):
        caption_images(pictures, out, asking(server), prompt="What?", progress=False)
    assert caption_images(pictures, out, asking(server), progress=False).already_written == 5


def test_every_text_has_its_settings_and_the_hash_of_its_image(server, pictures, tmp_path):
    caption_images(pictures, tmp_path / "c.parquet", asking(server, extra_body={"top_p": 0.5}), progress=False)
    (row, *_) = pyarrow.parquet.read_table(tmp_path / "c.parquet").to_pylist()
    assert json.loads(row["settings"]) == {
        "max_new_tokens": 512, "temperature": 0.0, "seed": 0, "extra_body": {"top_p": 0.5},
    }  # fmt: skip
    assert len(row["image_sha256"]) == 64
    caption_images(pictures, tmp_path / "c.jsonl", asking(server, extra_body={"top_p": 0.5}), progress=False)
    captioners = {record.captioner for file in ("c.parquet", "c.jsonl") for record in read_records(tmp_path / file)}
    assert len(captioners) == 1 and "top_p" in captioners.pop()


def test_a_file_without_settings_is_refused(server, pictures, tmp_path):
    caption_images(pictures, tmp_path / "c.jsonl", asking(server), progress=False)
    lines = [{key: row[key] for key in ("id", "text", "model", "revision", "prompt", "flag")}
             for row in rows(tmp_path / "c.jsonl")]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="no settings on record, but this run"):
        caption_images(pictures, tmp_path / "c.jsonl", asking(server), progress=False)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_changed_image_gets_a_new_text(server, pictures, tmp_path, ending):
    out = tmp_path / f"c.{ending}"
    caption_images(pictures, out, asking(server), progress=False)
    Image.new("RGB", (9, 9), "pink").save(pictures / "2.png")
    server.script[:] = ["A pink square on a wall."]
    server.seen.clear()
    done = caption_images(pictures, out, asking(server), progress=False)
    assert (done.written, done.already_written, len(server.seen)) == (1, 4, 1)
    texts = [(record.id, record.text) for record in read_records(out)]
    assert texts == [(f"{i}.png", "A pink square on a wall." if i == 2 else GOOD) for i in range(5)]
    assert caption_images(pictures, out, asking(server), progress=False).written == 0


def test_a_changed_image_of_a_shard_gets_a_new_text(server, pictures, tmp_path):
    captions = ShardCaptions(lambda: asking(server), "m", settings=asking(server).settings)
    records, shard = list(read_records(pictures)), tmp_path / "shard-00000.safetensors"
    captions.complete(records, shard, "here")
    assert len(captions.finished_texts(records, shard)) == 5
    Image.new("RGB", (9, 9), "pink").save(pictures / "2.png")
    server.script[:] = ["A pink square on a wall."]
    assert captions.finished_texts(records, shard) is None
    texts = captions.complete(records, shard, "here")
    assert [record.text for record in texts] == [GOOD, GOOD, "A pink square on a wall.", GOOD, GOOD]


def test_flagged_texts_are_asked_for_again_only_on_demand(server, pictures, tmp_path):
    out = tmp_path / "c.jsonl"
    server.script[:] = [GOOD, REFUSAL, REFUSAL, GOOD]
    first = caption_images(pictures, out, asking(server, concurrency=1), progress=False)
    assert (first.written, first.flagged) == (5, 1) and [row["flag"] for row in rows(out)].count("refusal") == 1
    assert caption_images(pictures, out, asking(server), progress=False).written == 0
    server.seen.clear()
    server.script[:] = ["A blue wall with a window and two chairs."]
    again = caption_images(pictures, out, asking(server), retry_flagged=True, progress=False)
    assert (again.written, again.already_written, again.flagged) == (1, 4, 0)
    assert [body["seed"] for body, _ in server.seen] == [2]  # no seed that was tried before
    assert [row["id"] for row in rows(out)] == [f"{i}.png" for i in range(5)]
    assert rows(out)[1]["text"].startswith("A blue wall") and rows(out)[1]["flag"] is None


def test_a_flagged_text_stays_if_there_is_no_new_one(server, pictures, tmp_path):
    out = tmp_path / "c.jsonl"
    server.script[:] = [REFUSAL]
    caption_images(pictures, out, asking(server), progress=False)
    before = out.read_bytes()
    server.script[:] = [500]
    with pytest.raises(ConnectionError, match="5 requests in a row"):
        caption_images(pictures, out, asking(server), retry_flagged=True, progress=False)
    assert out.read_bytes() == before


def test_shards_share_the_images_and_a_limit_takes_the_first(server, pictures, tmp_path):
    found = []
    for i in range(2):
        done = caption_images(pictures, tmp_path / f"{i}.jsonl", asking(server), part=(i, 2), progress=False)
        found.append([row["id"] for row in rows(tmp_path / f"{i}.jsonl")])
        assert done.rejected == 0
    assert found == [["0.png", "2.png", "4.png"], ["1.png", "3.png"]]
    for limit, total in ((2, 2), (2, 2), (4, 4)):
        caption_images(pictures, tmp_path / "l.jsonl", asking(server), limit=limit, progress=False)
        assert [row["id"] for row in rows(tmp_path / "l.jsonl")] == [f"{i}.png" for i in range(total)]
    with pytest.raises(ValueError, match="at least 1 image"):
        caption_images(pictures, tmp_path / "m.jsonl", asking(server), limit=0, progress=False)
    with pytest.raises(ValueError, match="part 2 of 2 does not exist"):
        caption_images(pictures, tmp_path / "m.jsonl", asking(server), part=(2, 2), progress=False)
