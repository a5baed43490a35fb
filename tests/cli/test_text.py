"""`tavq caption`, `tavq prepare` and `tavq store`: what they write, what they print, and their exit codes."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.text import ShardedStore
from tavq_plugin.text.manifest import shard_path


@pytest.fixture
def tavq():
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def table(folder, *lines):
    file = folder / "captions.jsonl"
    file.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return file


def test_prepare_again_replaces_a_broken_shard(tavq, tmp_path, bert_folder):
    file = table(tmp_path, *({"id": str(i), "text": "A red car."} for i in range(4)))
    command = ("prepare", "--data", file, "--out", tmp_path / "s", "--shard-size", 2, "--encoder", bert_folder)
    first = tavq(*command)
    assert first.exit_code == 0, first.output
    assert "4 texts in 2 shards, 2 made now; finished" in " ".join(first.output.split())
    assert "0 made now" in " ".join(tavq(*command).output.split())
    assert tavq("store", "verify", tmp_path / "s").exit_code == 0
    shard_path(tmp_path / "s", 1).write_bytes(b"half")
    broken = tavq("store", "verify", tmp_path / "s")
    assert broken.exit_code == 1 and "shard-00001" in broken.output and "again" in broken.output
    assert "1 made now" in " ".join(tavq(*command).output.split())
    assert len(ShardedStore.open(tmp_path / "s")) == 4


def test_units_beyond_the_encoders_limit_are_counted_and_reported(tavq, tmp_path, bert_folder):
    file = table(tmp_path, {"id": "a", "text": "A red car and " + "a dog and " * 30 + "a boat."})
    result = tavq("prepare", "--data", file, "--out", tmp_path / "s", "--encoder", bert_folder)
    assert result.exit_code == 0 and "longer than the encoder's limit: 1 unit, encoded in pieces" in " ".join(
        result.output.split()
    )
    assert ShardedStore.open(tmp_path / "s").counts()["in_pieces"] == 1


def test_letters_that_the_tagger_cannot_read_are_counted_and_reported(tavq, tmp_path, bert_folder):
    file = table(tmp_path, {"id": "a", "text": "A sign reads 欢迎."}, {"id": "b", "text": "A **red** car."})
    result = tavq("prepare", "--data", file, "--out", tmp_path / "s", "--encoder", bert_folder)
    assert result.exit_code == 0 and "1 texts have letters that the tagger cannot read" in " ".join(
        result.output.split()
    )
    store = ShardedStore.open(tmp_path / "s")
    assert store.counts()["unread"] == store.in_memory().unread == 1
    assert store.units("b", "phrase") == ["red car"]
    shown = tavq("store", "info", tmp_path / "s").output
    assert "letters of other scripts" in " ".join(shown.split()), shown


def test_left_out_records_give_exit_code_3(tavq, tmp_path, bert_folder):
    file = table(tmp_path, {"id": "a", "text": "A red car."}, "{\n")
    result = tavq("prepare", "--data", file, "--out", tmp_path / "s", "--encoder", bert_folder)
    assert result.exit_code == 3 and "1 record left out" in " ".join(result.output.split())
    assert json.loads((tmp_path / "s" / "rejected.jsonl").read_text())["line"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "none", "--out", "s"), "no file or folder"),
        (("--data", "captions.jsonl", "--out", "s", "--shard", "x"), "give I/N"),
        (("--data", "captions.jsonl", "--out", "s", "--dtype", "int8"), "float32 or bfloat16"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tavq, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    table(tmp_path, {"id": "a", "text": "A red car."})
    result = tavq("prepare", *arguments)
    assert result.exit_code == 2 and words in " ".join(result.output.split())
    assert not (tmp_path / "s").exists()
    assert tavq("store", "verify", tmp_path).exit_code == 2


def test_caption_then_prepare(tavq, tmp_path, tiny_vlm, bert_folder):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"none")
    out = tmp_path / "texts" / "captions.jsonl"
    model = tiny_vlm("llava")
    options = ("--max-new-tokens", 200, "--temperature", 1.5, "--prompt", "Describe the image .")
    result = tavq("caption", "--data", tmp_path, "--out", out, "--model", model, *options)
    assert result.exit_code == 3, result.output
    assert "2 texts written now" in " ".join(result.output.split())
    assert "c.png" in out.with_name(f"{out.stem}.rejected.jsonl").read_text()
    result = tavq("prepare", "--data", out, "--out", tmp_path / "s", "--encoder", bert_folder)
    assert result.exit_code == 0, result.output
    store = ShardedStore.open(tmp_path / "s")
    assert list(store.ids) == ["a.png", "b.png"] and "|captions-" in store.fingerprint
    result = tavq("caption", "--data", tmp_path, "--out", out, "--model", "m", "--server", "nowhere")
    assert result.exit_code == 2 and "http://" in result.output


def test_caption_prints_tokens_and_takes_parts_limits_and_parameters(tavq, tmp_path, pictures, server):
    usage = {"prompt_tokens": 1000, "completion_tokens": 7}
    server.script[:] = [{"usage": usage}]
    command = ("caption", "--data", pictures, "--model", "m", "--server", server.url + "/chat/completions")
    result = tavq(*command, "--out", tmp_path / "a.jsonl", "--shard", "1/2", "--image-size", 16)
    assert result.exit_code == 0, result.output
    assert "2,000 tokens read, 14 written" in " ".join(result.output.split())
    result = tavq(*command, "--out", tmp_path / "b.jsonl", "--limit", 3, "--json", "--extra-body", '{"top_p": 0.5}')
    counts = json.loads(result.stdout)
    assert (counts["written"], counts["prompt_tokens"], counts["completion_tokens"]) == (3, 3000, 21)
    assert server.seen[-1][0]["top_p"] == 0.5
    options = ("--out", tmp_path / "b.jsonl", "--extra-body", '{"top_p": 0.5}')
    server.script[:] = [{"choice": {"finish_reason": "length"}}]
    assert tavq(*command, *options).exit_code == 0
    server.script[:] = ["A red wall beside a small window."]
    result = tavq(*command, *options, "--retry-flagged")
    assert "2 texts written now, 3 before" in " ".join(result.output.split())
    result = tavq(*command, "--out", tmp_path / "b.jsonl")
    assert result.exit_code == 2 and "extra_body" in result.output and "give another --out" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--extra-body", "{"), "--extra-body is not JSON"),
        (("--extra-body", "[1]"), "must be a JSON object, got list"),
        (("--extra-body", '{"model": "x"}'), "cannot set model"),
        (("--shard", "2/2"), "does not exist"),
        (("--shard", "x"), "give I/N"),
    ],
)
def test_wrong_caption_options_are_refused(tavq, tmp_path, pictures, server, arguments, words):
    command = ("caption", "--data", pictures, "--model", "m", "--server", server.url, "--out", tmp_path / "c.jsonl")
    result = tavq(*command, *arguments)
    assert result.exit_code == 2 and words in " ".join(result.output.split())
    assert not server.seen


def test_texts_that_are_all_flagged_are_named_as_such(tavq, tmp_path, bert_folder):
    file = table(tmp_path, {"id": "a", "text": "I'm sorry, I can't.", "flag": "refusal"})
    result = tavq("prepare", "--captions", file, "--out", tmp_path / "s", "--encoder", bert_folder)
    assert result.exit_code == 2 and "tavq caption --retry-flagged asks for them again" in result.output


def test_a_dead_server_ends_the_command_with_what_failed_and_the_mend(tavq, tmp_path, pictures, server):
    server.script[:] = ["A red wall beside a small window.", "cut"]
    command = ("caption", "--data", pictures, "--model", "m", "--server", server.url, "--out", tmp_path / "c.jsonl")
    options = ("--retries", 0, "--concurrency", 1, "--stop-after", 2)
    result = tavq(*command, *options)
    words = " ".join(result.output.split())
    assert result.exit_code == 2 and "2 requests in a row got no text, the last for 2.png: is the server" in words
    server.script[:] = ["A red wall beside a small window."]
    assert "4 texts written now, 1 before" in " ".join(tavq(*command, *options).output.split())


def test_prepare_asks_a_model_or_a_server_for_the_texts(tavq, tmp_path, tiny_vlm, bert_folder, pictures, server):
    options = ("--data", pictures, "--encoder", bert_folder, "--shard-size", 3)
    asked = ("--caption-model", tiny_vlm("llava"), "--max-new-tokens", 200, "--temperature", 1.5, "--caption-batch", 2)
    result = tavq("prepare", *options, *asked, "--out", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "5 texts in 2 shards, 2 made now; finished" in " ".join(result.output.split())
    asked = ("--caption-model", "m", "--server", server.url, "--prompt", "Say {captions}.", "--with-captions")
    result = tavq("prepare", *options, *asked, "--out", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert ShardedStore.open(tmp_path / "s").units("0.png", "sentence") == [server.script[0]]
    file = tmp_path / "c.parquet"
    assert tavq("caption", "--data", pictures, "--out", file, "--model", "m", "--server", server.url).exit_code == 0
    result = tavq("prepare", "--captions", file, "--encoder", bert_folder, "--out", tmp_path / "c")
    assert result.exit_code == 0 and list(ShardedStore.open(tmp_path / "c").ids) == [f"{i}.png" for i in range(5)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --data, or --captions"),
        (("--data", "d", "--captions", "c.jsonl"), "give --data, or --captions"),
        (("--data", "d", "--server", "http://127.0.0.1:9"), "need --caption-model"),
        (("--captions", "c.jsonl", "--caption-model", "m"), "leave --caption-model out"),
        (("--data", "d", "--caption-model", "none/here"), "give --model a folder, or --server"),
        (("--data", "d", "--caption-model", "m", "--server", "host:8000"), "with http://"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tavq, tmp_path, arguments, words):
    result = tavq("prepare", "--out", tmp_path / "s", *arguments)
    assert result.exit_code == 2 and words in " ".join(result.output.split())


def test_stores_merge_and_append_by_command(tavq, tmp_path, bert_folder):
    for name, text in (("a", "A red car."), ("b", "A blue boat."), ("c", "A dog."), ("mixed", "A cat.")):
        (tmp_path / name).mkdir()
        file = table(tmp_path / name, {"id": name, "text": text})
        pooling = ("--pooling", "cls") if name == "mixed" else ()
        out = tmp_path / f"s-{name}"
        assert tavq("prepare", "--data", file, "--out", out, "--encoder", bert_folder, *pooling).exit_code == 0
    a, b, c, mixed = (tmp_path / f"s-{name}" for name in ("a", "b", "c", "mixed"))
    result = tavq("store", "merge", a, b, "--out", tmp_path / "m")
    assert result.exit_code == 0 and "2 texts in 2 shards" in " ".join(result.output.split())
    result = tavq("store", "append", tmp_path / "m", c)
    assert result.exit_code == 0 and "3 texts in 3 shards" in " ".join(result.output.split())
    assert list(ShardedStore.open(tmp_path / "m").ids) == ["a", "b", "c"]
    assert tavq("store", "verify", tmp_path / "m").exit_code == 0
    result = tavq("store", "merge", a, mixed, "--out", tmp_path / "n")
    assert result.exit_code == 2 and "do not mix" in " ".join(result.output.split())
    assert not (tmp_path / "n").exists()
    result = tavq("store", "merge", a, a, "--out", tmp_path / "n")
    assert result.exit_code == 2 and "is in another shard too" in " ".join(result.output.split())
    assert tavq("store", "append", a, tmp_path / "none").exit_code == 2
    result = tavq("store", "whiten", tmp_path / "m", "--out", tmp_path / "w")
    assert result.exit_code == 0 and "3 texts in 3 shards" in " ".join(result.output.split())
    assert tavq("store", "whiten", c, "--like", tmp_path / "w", "--out", tmp_path / "cw").exit_code == 0
    assert ShardedStore.open(tmp_path / "cw").fingerprint == ShardedStore.open(tmp_path / "w").fingerprint
    result = tavq("store", "append", tmp_path / "w", b)
    assert result.exit_code == 2 and "do not mix" in " ".join(result.output.split())


def test_a_byte_order_mark_in_a_stop_list_is_ignored(tavq, tmp_path, bert_folder):
    file = table(tmp_path, {"id": "a", "text": "A red car and a blue dog."})
    (tmp_path / "stop.txt").write_text("car\ndog\n", encoding="utf-8-sig")
    command = ("--data", file, "--out", tmp_path / "s", "--encoder", bert_folder, "--stop", tmp_path / "stop.txt")
    assert tavq("prepare", *command).exit_code == 0
    assert not {"car", "dog"} & set(ShardedStore.open(tmp_path / "s").units("a", "word"))
