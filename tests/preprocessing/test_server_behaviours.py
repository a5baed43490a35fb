"""Servers refuse parameters, cut texts, think aloud, filter and count tokens; each behaviour comes over real HTTP."""

import base64
import io
import json

import pytest
from PIL import Image

from tavq_plugin.data.read import read_records
from tavq_plugin.preprocessing.caption import caption_images
from tavq_plugin.preprocessing.server_captioner import ServerCaptioner

GOOD = "A small red boat lies on the sand beside two wooden houses under a grey sky."
IMAGE = Image.new("RGB", (40, 20), "red")


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asking(server, **settings):
    return ServerCaptioner(server.url, "m", **{"first_wait": 0.01, "timeout": 3, "retries": 0, **settings})


def openai_error(message, param, code="unsupported_parameter"):
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def refusing(*, has=None, lacks=None, answer):
    """A step: status 400 with this answer, to requests with (or without) a parameter that `has` judges."""

    def step(body):
        refused = has(body) if has else lacks not in body
        return {"status": 400, "json": answer} if refused else GOOD

    return step


REFUSALS = {
    "openai, max_tokens": (
        refusing(
            has=lambda body: "max_tokens" in body,
            answer=openai_error(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
                "instead.",
                "max_tokens",
            ),
        ),
        {"max_completion_tokens": 512, "temperature": 0.0, "seed": 0},
        "max_completion_tokens",
    ),
    "openai, temperature": (
        refusing(
            has=lambda body: body.get("temperature", 1) != 1,
            answer=openai_error(
                "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
                "supported.",
                "temperature",
                "unsupported_value",
            ),
        ),
        {"max_tokens": 512, "seed": 0},
        "temperature",
    ),
    "tgi, temperature 0": (
        refusing(
            has=lambda body: body.get("temperature") == 0,
            answer={
                "error": "Input validation error: `temperature` must be strictly positive",
                "error_type": "validation",
            },
        ),
        {"max_tokens": 512, "seed": 0},
        "temperature",
    ),
    "pydantic, seed": (
        refusing(
            has=lambda body: "seed" in body,
            answer={
                "detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs not permitted"}]
            },
        ),
        {"max_tokens": 512, "temperature": 0.0},
        "seed",
    ),
    "gemini, seed": (
        refusing(
            has=lambda body: "seed" in body,
            answer={"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": no field.'}},
        ),
        {"max_tokens": 512, "temperature": 0.0},
        "seed",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_parameter_that_is_refused_is_mended_and_said_once(server, pictures, tmp_path, case):
    step, expected, word = REFUSALS[case]
    server.script[:], said = [step], []
    captioner = asking(server, concurrency=3, say=said.append)
    done = caption_images(pictures, tmp_path / "c.jsonl", captioner, progress=False)
    assert (done.written, done.rejected, done.flagged) == (5, 0, 0)
    assert len(said) == 1 and word in said[0]
    last = {key: value for key, value in server.seen[-1][0].items() if key not in ("model", "messages")}
    assert last == expected
    assert len(server.seen) <= 5 + 3  # at most each of the first three requests was refused


def test_several_refused_parameters_are_mended_one_after_the_other(server):
    steps = [REFUSALS[case][0] for case in ("openai, max_tokens", "openai, temperature", "pydantic, seed")]

    def step(body):
        return next((answer for one in steps if isinstance(answer := one(body), dict)), GOOD)

    server.script[:], said = [step], []
    assert asking(server, say=said.append).ask(IMAGE, "What?").text == GOOD
    assert len(said) == 3 and len(server.seen) == 4


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 2048 tokens, but you requested 2500 (max_tokens=512).",
        "max_tokens is too large: 512. This model supports at most 256 completion tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 300 tokens.",
        "image too large",
    ],
)
def test_an_error_about_one_image_drops_no_parameter(server, message):
    server.script[:], said = [{"status": 400, "json": openai_error(message, None, None)}], []
    failure = asking(server, say=said.append).ask(IMAGE, "What?")
    assert failure.of_image and message[:20] in str(failure) and not said and len(server.seen) == 1


def test_a_server_that_always_refuses_a_parameter_ends(server):
    answer = openai_error("Unsupported parameter: 'seed'", "seed")
    server.script[:] = [{"status": 400, "json": answer}]
    assert asking(server, say=lambda _: None).ask(IMAGE, "What?").of_image and len(server.seen) == 2


def test_extra_parameters_are_sent_and_may_take_the_place_of_ours(server):
    extra = {"top_p": 0.9, "seed": None, "max_tokens": 7, "chat_template_kwargs": {"enable_thinking": False}}
    asking(server, extra_body=extra).ask(IMAGE, "What?")
    body = server.seen[0][0]
    assert (body["top_p"], body["max_tokens"], body["chat_template_kwargs"]["enable_thinking"]) == (0.9, 7, False)
    assert "seed" not in body
    with pytest.raises(ValueError, match="cannot set model, messages"):
        asking(server, extra_body={"messages": [], "model": "x"})


def test_the_key_is_refused_in_extra_parameters(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret/1")
    with pytest.raises(ValueError, match="holds the key") as refused:
        asking(server, extra_body={"headers": {"x": "Bearer sk-secret/1"}})
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions", "/chat/completions/", "/chat/completions?version=1"])
def test_the_address_may_be_given_whole(server, ending):
    captioner = ServerCaptioner(server.url + ending, "m", retries=0)
    assert captioner.url.split("?")[0].endswith("/v1/chat/completions") and captioner.url.count("chat") == 1
    assert captioner.ask(IMAGE, "What?").text == GOOD


THINKING = "The user wants a description. I see a boat."
ANSWERS = {
    "length": ({"finish_reason": "length"}, GOOD, "cut"),
    "content_filter": ({"finish_reason": "content_filter", "message": {"content": None}}, "", "filtered"),
    "refusal": ({"message": {"content": None, "refusal": "I can't do that."}}, "I can't do that.", "refusal"),
    "a part that refuses": ({"message": {"content": [{"type": "refusal", "refusal": "No."}]}}, "No.", "refusal"),
    "reasoning beside": ({"message": {"content": GOOD, "reasoning_content": THINKING}}, GOOD, None),
    "reasoning alone": ({"message": {"content": None, "reasoning_content": THINKING}}, "", "thinking"),
    "reasoning, cut": ({"message": {"content": "", "reasoning": THINKING}, "finish_reason": "length"}, "", "cut"),
    "a thought": ({"message": {"content": f"<think>{THINKING}</think>\n{GOOD}"}}, GOOD, None),
    "a thought, cut": ({"message": {"content": f"<think>{THINKING}"}, "finish_reason": "length"}, "", "cut"),
    "a thought, unfinished": ({"message": {"content": f"<think>{THINKING}"}}, "", "thinking"),
    "parts": ({"message": {"content": [{"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}]}},
              GOOD, None),
    "parts of thought": (
        {"message": {"content": [{"type": "thinking", "thinking": THINKING}, {"type": "text", "text": GOOD}]}},
        GOOD, None,
    ),
    "an echo": ({"message": {"content": f"What is this? {GOOD}"}}, GOOD, None),
    "a greeting": ({"message": {"content": f"Sure! Here's a description of the image:\n\n{GOOD}"}}, GOOD, None),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_no_description_is_cleaned_or_flagged_and_never_learnt(server, pictures, tmp_path, case):
    choice, text, flag = ANSWERS[case]
    server.script[:] = [{"choice": choice}]
    caption_images(pictures, tmp_path / "c.jsonl", asking(server), prompt="What is this?", progress=False)
    assert {(row["text"], row["flag"]) for row in rows(tmp_path / "c.jsonl")} == {(text, flag)}
    assert {record.text for record in read_records(tmp_path / "c.jsonl")} == {text if flag is None else ""}
    assert THINKING not in (tmp_path / "c.jsonl").read_text()


def test_an_error_of_a_content_filter_is_a_flagged_text(server, pictures, tmp_path):
    server.script[:] = [
        GOOD,
        {"status": 400, "json": {"error": {"code": "content_filter", "message": "filtered"}}},
        GOOD,
    ]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server, concurrency=1), progress=False)
    assert (done.written, done.flagged, done.rejected) == (5, 1, 0)
    assert rows(tmp_path / "c.jsonl")[1]["flag"] == "filtered"


def test_a_cut_text_is_not_asked_for_again_and_an_empty_one_is(server, pictures, tmp_path):
    server.script[:] = [{"choice": {"finish_reason": "length"}}]
    caption_images(pictures, tmp_path / "a.jsonl", asking(server), progress=False)
    assert len(server.seen) == 5
    server.seen.clear()
    server.script[:] = [""]
    done = caption_images(pictures, tmp_path / "b.jsonl", asking(server), progress=False)
    assert (len(server.seen), done.retried, done.flagged) == (10, 5, 5)


def test_tokens_are_counted_over_both_attempts(server, pictures, tmp_path):
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    server.script[:] = [{"usage": usage, "choice": {"message": {"content": ""}}}, {"usage": usage}]
    done = caption_images(pictures, tmp_path / "c.jsonl", asking(server, concurrency=1), progress=False)
    assert (done.prompt_tokens, done.completion_tokens) == (600, 42)


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "many"}, {"completion_tokens": -3}])
def test_strange_counts_of_tokens_are_none(server, usage):
    server.script[:] = [{"usage": usage}]
    answer = asking(server).ask(IMAGE, "What?")
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == (GOOD, 0, 0)


def test_images_are_shrunk_and_never_enlarged(server, tmp_path):
    folder = tmp_path / "sizes"
    folder.mkdir()
    Image.new("RGB", (40, 20)).save(folder / "a.png")
    Image.new("RGB", (8, 4)).save(folder / "b.png")
    caption_images(folder, tmp_path / "c.jsonl", asking(server, concurrency=1), image_size=10, progress=False)
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body, _ in server.seen]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size for url in urls]
    assert sizes == [(10, 5), (8, 4)]
    assert rows(tmp_path / "c.jsonl")[0]["settings"]["image_size"] == 10
    with pytest.raises(ValueError, match="at least 1 pixel"):
        caption_images(folder, tmp_path / "d.jsonl", asking(server), image_size=0, progress=False)
