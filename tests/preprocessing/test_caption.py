"""Captions from tiny models and from a server that fails on purpose are kept, flagged, resumed and never mixed."""

import json

import pyarrow.parquet
import pytest
from PIL import Image

from tavq_plugin.data.read import read_records
from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.caption_quality import caption_flaw
from tavq_plugin.preprocessing.local_captioner import LocalCaptioner
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner

GOOD = "A small red boat lies on the sand beside two wooden houses under a grey sky."
REFUSAL = "I'm sorry, but I can't help with that image."


class Fake:
    """A captioner of canned texts: by attempt, then by place."""

    name, revision = "fake", "1"

    def __init__(self, *attempts):
        self.attempts, self.calls, self.prompts = attempts, [], []

    def __call__(self, images, prompts, attempt=0):
        self.calls.append(len(images))
        self.prompts += prompts
        if any(image.size == (1, 1) for image in images):
            raise ValueError("too small for this processor")
        return [self.attempts[attempt]] * len(images)


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asking(server, **settings):
    return ServerCaptioner(server.url, "m", **{"first_wait": 0.01, "timeout": 0.3, "retries": 2, **settings})


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_a_tiny_model_writes_a_text_for_every_image(kind, tiny_vlm, pictures, tmp_path):
    captioner = LocalCaptioner(str(tiny_vlm(kind)), revision="r1", max_new_tokens=16, temperature=1.5)
    out = tmp_path / "c.jsonl"
    done = caption_images(pictures, out, captioner, batch=2, prompt="Describe the image .", progress=False)
    assert (done.written, done.rejected) == (5, 0)
    written = rows(out)
    assert [row["id"] for row in written] == [f"{i}.png" for i in range(5)]
    assert {(row["model"], row["revision"], row["prompt"]) for row in written} == {
        (captioner.name, "r1", "Describe the image .")
    }
    assert any(row["text"] for row in written) and not any("[PAD]" in row["text"] for row in written)
    assert {record.id for record in read_records(out)} == {row["id"] for row in written}


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_a_text_does_not_depend_on_its_neighbours(kind, tiny_vlm, pictures):
    captioner = LocalCaptioner(str(tiny_vlm(kind)), max_new_tokens=8)
    images = [Image.open(pictures / f"{i}.png").convert("RGB") for i in range(3)]
    prompts = ["Describe", "Describe the image in red , blue .", "it is a dog"]
    alone = [captioner([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert captioner(images, prompts) == alone
    assert any(alone)


def test_a_missing_model_says_what_to_give(bert_folder, tmp_path):
    with pytest.raises(OSError, match="give --model a folder, or --server"):
        LocalCaptioner(str(tmp_path / "none"))
    with pytest.raises((ValueError, OSError)):
        LocalCaptioner(str(bert_folder))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, None),
        ("Two dogs.", None),
        ("A dog in a swimming pool swims toward somebody we cannot see.", None),
        ("A sign reads: sorry, we are closed. I can't be opened.", None),
        ("", "empty"),
        ("…\n", "empty"),
        (REFUSAL, "refusal"),
        ("I’m unable to view images.", "refusal"),
        ("As an AI language model, I do not see.", "refusal"),
        ("Sorry, no.", "refusal"),
        ("Please upload the image.", "refusal"),
        ("Unfortunately, I'm unable to describe this.", "refusal"),
        ("I must decline to describe this.", "refusal"),
        ("There is no image attached to your message.", "refusal"),
        ("No image was provided.", "refusal"),
        ("I'm sorry, but there is no image attached.", "refusal"),
        ("Sorry, but I can't help with that.", "refusal"),
        ("I can't help with that, but the user may ask another model.", "refusal"),
        ("I cannot describe people in images.", "refusal"),
        ("抱歉，我无法描述这张图片。", "refusal"),
        ("我无法查看图片。", "refusal"),
        ("<think>Let me look.</think>", "thinking"),
        ("The user wants a caption.\n</think>\n\nA red car.", "thinking"),
        ("Sorry! We're closed, reads a sign on a shop door.", None),
        ("Sorry is written on the wall in red letters.", None),
        ("I can't identify the man, but he wears a blue coat and sits on a bench under a tree.", None),
        ("No image is complete without its frame, reads the poster.", None),
        ("There is no picture on the wall, only a nail.", None),
        ("A woman thinks; a bubble over her head reads 'I must decline'.", None),
        ("the cat and the dog and " * 20, "repeating"),
        ("house " * 40, "repeating"),
        ("一只狗" * 60, "repeating"),
        ("x" * 400, "repeating"),
    ],
)
def test_flaws(text, found):
    assert caption_flaw(text) == found


def test_a_flawed_text_is_asked_for_again_then_kept_and_flagged(pictures, tmp_path):
    mended = caption_images(pictures, tmp_path / "a.jsonl", Fake(REFUSAL, GOOD), progress=False)
    assert (mended.retried, mended.flagged) == (5, 0)
    assert {row["text"] for row in rows(tmp_path / "a.jsonl")} == {GOOD}
    kept = caption_images(pictures, tmp_path / "b.jsonl", Fake(REFUSAL, REFUSAL), progress=False)
    assert (kept.retried, kept.flagged, kept.written) == (5, 5, 5)
    assert {(row["text"], row["flag"]) for row in rows(tmp_path / "b.jsonl")} == {(REFUSAL, "refusal")}
    assert {record.text for record in read_records(tmp_path / "b.jsonl")} == {""}  # a refusal is not trained on


def test_the_images_own_captions_go_before_the_prompt(pictures, tmp_path):
    (pictures / "0.txt").write_text("a red thing\na wall")
    fake = Fake(GOOD)
    caption_images(pictures, tmp_path / "a.jsonl", fake, prompt="Say more.", with_captions=True, progress=False)
    assert "A red thing. A wall." in fake.prompts[0] and fake.prompts[0].endswith("Say more.")
    assert rows(tmp_path / "a.jsonl")[0]["prompt"] == "People describe the image thus: {captions}\nSay more."
    with pytest.raises(ValueError, match="--with-captions"):
        caption_images(pictures, tmp_path / "b.jsonl", fake, prompt="{captions}?", progress=False)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_stopped_run_resumes_and_asks_once_per_image(pictures, tmp_path, ending):
    class Stopped(Fake):
        def __call__(self, images, prompts, attempt=0):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(images, prompts, attempt)

    out = tmp_path / f"c.{ending}"
    with pytest.raises(KeyboardInterrupt):
        caption_images(pictures, out, Stopped(GOOD), batch=2, progress=False)
    lines = out if ending == "jsonl" else out.with_name("c.parquet.unfinished.jsonl")
    with lines.open("ab") as file:
        file.write(b'{"id": "4.png", "text": "half a li')
    fake = Fake(GOOD)
    done = caption_images(pictures, out, fake, batch=2, progress=False)
    assert (fake.calls, done.written, done.already_written) == ([1], 1, 4)
    assert caption_images(pictures, out, fake, progress=False).written == 0
    ids = [row["id"] for row in (rows(out) if ending == "jsonl" else pyarrow.parquet.read_table(out).to_pylist())]
    assert ids == [f"{i}.png" for i in range(5)]
    Image.new("RGB", (9, 9)).save(pictures / "9.png")
    assert caption_images(pictures, out, fake, progress=False).written == 1
    assert len(list(read_records(out))) == 6
    assert not [path.name for path in tmp_path.iterdir() if path.name not in (out.name, "pictures")]
    other = Fake(GOOD)
    other.revision = "2"
    with pytest.raises(ValueError, match="do not mix; give another --out"):
        caption_images(pictures, out, other, progress=False)


def test_broken_images_are_rejected_and_the_rest_goes_on(pictures, tmp_path, decompression_limit):
    (pictures / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 half")
    (pictures / "none.png").write_bytes(b"")
    Image.new("CMYK", (8, 8)).save(pictures / "cmyk.jpg")
    Image.new("P", (8, 8)).save(pictures / "palette.png")
    Image.new("I;16", (8, 8)).save(pictures / "deep.png")
    Image.new("RGB", (1, 1)).save(pictures / "one.png")  # the fake model refuses it, and only it
    Image.new("RGB", (200, 200)).save(pictures / "bomb.png")
    decompression_limit(20_000)
    done = caption_images(pictures, tmp_path / "c.jsonl", Fake(GOOD), progress=False)
    assert (done.written, done.rejected) == (8, 4)
    reasons = {row["reason"].split(":")[0]: row["reason"] for row in rows(tmp_path / "c.rejected.jsonl")}
    assert set(reasons) == {"half.jpg", "none.png", "one.png", "bomb.png"}
    assert "too small" in reasons["one.png"] and "more pixels" in reasons["bomb.png"]


@pytest.mark.parametrize("step", [429, 500, 503, b"garbage", b'{"choices": []}', "slow", "cut", b"[1]"])
def test_a_server_that_fails_once_is_asked_again(server, pictures, tmp_path, step):
    server.script[:] = [step, GOOD]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server, concurrency=2), batch=5, progress=False)
    assert (done.written, done.rejected) == (5, 0)
    assert len(server.seen) == 6
    body, _ = server.seen[0]
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "text"] and body["model"] == "m"


def test_no_more_requests_at_once_than_allowed(server, pictures, tmp_path):
    caption_images(pictures, tmp_path / "c.jsonl", asking(server, concurrency=2), batch=5, progress=False)
    assert server.state["most"] == 2


def test_one_image_that_the_server_never_answers_is_rejected(server, pictures, tmp_path):
    server.script[:] = [GOOD, 500, 500, 500, GOOD]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server, concurrency=1), batch=5, progress=False)
    assert (done.written, done.rejected) == (4, 1)
    (row,) = rows(tmp_path / "c.rejected.jsonl")
    assert "1.png" in row["reason"] and "HTTP 500" in row["reason"]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server), batch=5, progress=False)
    assert (done.written, done.already_written, done.rejected) == (1, 4, 0)
    assert not (tmp_path / "c.rejected.jsonl").exists()


def test_a_bad_request_is_not_repeated(server, pictures, tmp_path):
    server.script[:] = [GOOD, 400, GOOD]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server, concurrency=1), progress=False)
    assert (done.written, done.rejected, len(server.seen)) == (4, 1, 5)


def test_a_refusing_or_missing_server_stops_the_run(server, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    server.script[:] = [401]
    with pytest.raises(PermissionError, match="the key in OPENAI_API_KEY"):
        caption_images(pictures, tmp_path / "c.jsonl", asking(server), progress=False)
    assert server.seen[0][1]["Authorization"] == "Bearer k"
    server.script[:] = [500]
    with pytest.raises(ConnectionError, match="is the server running"):
        caption_images(pictures, tmp_path / "c.jsonl", asking(server, retries=0), progress=False)
    with pytest.raises(ConnectionError, match="is the server running"):
        caption_images(
            pictures, tmp_path / "d.jsonl", ServerCaptioner("http://127.0.0.1:9", "m", retries=0), progress=False
        )
    with pytest.raises(ValueError, match="http://"):
        ServerCaptioner("localhost:8000", "m")
    assert rows(tmp_path / "c.jsonl") == []


def test_the_key_reaches_no_message_and_no_other_server(server, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.script[:] = [500, b"you sent sk-secret", 400, GOOD]
    server.error_body = b"wrong key: sk-secret"
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server, retries=0, concurrency=1), progress=False)
    assert (done.written, done.rejected) == (2, 3)
    rejected = (tmp_path / "c.rejected.jsonl").read_text()
    assert rejected.count("[key]") == 3 and "sk-secret" not in rejected
    before = len(server.seen)
    server.script[:] = ["redirect"]
    with pytest.raises(PermissionError, match="refuses every request .HTTP 302"):
        asking(server, retries=0)([Image.new("RGB", (4, 4))], ["What?"])
    assert len(server.seen) == before + 1 and server.redirected == []


def test_an_output_that_would_hide_the_images_is_refused(pictures):
    with pytest.raises(ValueError, match="another name or folder"):
        caption_images(pictures, pictures / "captions.jsonl", Fake(GOOD), progress=False)
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        caption_images(pictures, pictures / "captions.txt", Fake(GOOD), progress=False)


def test_two_runs_do_not_write_one_file(pictures, tmp_path):
    out = tmp_path / "c.jsonl"

    class Second(Fake):
        def __call__(self, images, prompts, attempt=0):
            with pytest.raises(BlockingIOError, match="another run is writing"):
                caption_images(pictures, out, Fake(GOOD), progress=False)
            return super().__call__(images, prompts, attempt)

    assert caption_images(pictures, out, Second(GOOD), progress=False).written == 5


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_each_output_of_a_folder_has_its_own_list_of_rejected_images(pictures, tmp_path, ending):
    (pictures / "none.png").write_bytes(b"")
    assert caption_images(pictures, tmp_path / "a.jsonl", Fake(GOOD), progress=False).rejected == 1
    (pictures / "none.png").unlink()
    assert caption_images(pictures, tmp_path / f"b.{ending}", Fake(GOOD), progress=False).rejected == 0
    assert "none.png" in rows(tmp_path / "a.rejected.jsonl")[0]["reason"]
    assert caption_images(pictures, tmp_path / "a.parquet", Fake(GOOD), progress=False).rejected == 0
    assert (tmp_path / "a.rejected.jsonl").exists()


def test_a_foreign_file_with_the_lists_name_is_kept(pictures, tmp_path):
    (pictures / "none.png").write_bytes(b"")
    (tmp_path / "a.rejected.jsonl").write_text('{"thesis": 1}')
    fake = Fake(GOOD)
    with pytest.raises(FileExistsError, match=r"a\.rejected\.jsonl is in the way.* another --out, or move it"):
        caption_images(pictures, tmp_path / "a.jsonl", fake, progress=False)
    assert (tmp_path / "a.rejected.jsonl").read_text() == '{"thesis": 1}' and not fake.calls
    with pytest.raises(ValueError, match="another name"):
        caption_images(pictures, tmp_path / "b.rejected.jsonl", fake, progress=False)


def test_a_foreign_file_in_place_of_captions_is_refused_and_kept(pictures, tmp_path):
    for name, content in (("a.jsonl", '{"thesis": 1}'), ("a.jsonl", '{"thesis": 1}\n'), ("a.jsonl.lock", "mine")):
        (tmp_path / name).write_text(content)
        with pytest.raises((ValueError, FileExistsError), match="another --out|delete the line"):
            caption_images(pictures, tmp_path / "a.jsonl", Fake(GOOD), progress=False)
        assert (tmp_path / name).read_text() == content
        (tmp_path / name).unlink()
