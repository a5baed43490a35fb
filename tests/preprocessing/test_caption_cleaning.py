"""Thoughts, echoes, greetings and refusals are taken out of a text or flagged; descriptions stay as they are."""

import json
import time
from pathlib import Path

import pytest

from tavq_plugin.preprocessing.caption_cleaning import clean_caption
from tavq_plugin.preprocessing.caption_quality import caption_flaw
from tavq_plugin.preprocessing.refusals import is_refusal

PROMPT = "Analyze the image in a comprehensive and detailed manner."
GOOD = "A small red boat lies on the sand beside two wooden houses under a grey sky."
LABELLED = Path(__file__).parents[1] / "data" / "refusals.jsonl"


def labelled(which):
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["set"] == which]


def precision_and_recall(rows):
    """Of the flag "refusal"."""
    found = [caption_flaw(row["text"]) == "refusal" for row in rows]
    right = sum(flagged and row["refusal"] for flagged, row in zip(found, rows, strict=True))
    return right / sum(found), right / sum(row["refusal"] for row in rows)


def test_refusals_that_the_rules_were_written_with_are_found():
    rows = labelled("tuned")
    assert len(rows) >= 200 and len({row["language"] for row in rows}) >= 12
    precision, recall = precision_and_recall(rows)
    assert precision >= 0.99 and recall >= 0.97, (precision, recall)


def test_refusals_that_the_rules_have_not_seen_are_mostly_found():
    """These were labelled after the rules were written; the rules were not changed to fit them."""
    rows = labelled("unseen")
    assert len(rows) >= 40
    precision, recall = precision_and_recall(rows)
    assert precision >= 0.95 and recall >= 0.75, (precision, recall)


@pytest.mark.parametrize("text", [row["text"] for row in labelled("tuned") + labelled("unseen") if not row["refusal"]])
def test_cleaning_keeps_descriptions_as_they_are(text):
    assert clean_caption(text, PROMPT) == (text, None)


@pytest.mark.parametrize(
    "text",
    [
        f"<think>It may be a boat.\nOr not.</think>\n\n{GOOD}",
        f"<thinking>boat</thinking>{GOOD}",
        f"It may be a boat. The user wants details.\n</think>\n{GOOD}",  # the template opened the thought
        f"◁think▷a boat◁/think▷{GOOD}",
        f"{GOOD}\n<think>Did I mention the sky",
        f"<|im_start|>assistant\n{GOOD}<|im_end|>",
        f"{GOOD}</s>",
        f"<answer>{GOOD}</answer>",
        f"{PROMPT} {GOOD}",
        f"USER: {PROMPT}\nASSISTANT: {GOOD}",
        f"analyze the image in a  comprehensive\nand detailed manner.\n{GOOD}",
        f"Assistant: {GOOD}",
        f"Sure! Here's a detailed description of the image:\n\n{GOOD}",
        f"Certainly! {GOOD}",
        f"Here is a comprehensive analysis of the image:\n{GOOD}",
        f"Of course. Here is the description you asked for: {GOOD}",
        f"**Image Description:** {GOOD}",
        f"{GOOD} Let me know if you'd like more details!",
        f"{GOOD}\n\nWould you like me to describe anything else?",
        f"{GOOD} I hope this helps!",
        f"Natürlich! Hier ist eine ausführliche Beschreibung des Bildes:\n{GOOD}",
        f"Bien sûr ! Voici une description détaillée de l'image : {GOOD}",
        f"¡Claro! Aquí tienes una descripción de la imagen:\n\n{GOOD}",
        f"当然！以下是图片的详细描述：{GOOD}",
        f"もちろんです。以下は画像の説明です：{GOOD}",
    ],
)
def test_what_is_no_description_is_taken_out(text):
    assert clean_caption(text, PROMPT) == (GOOD, None)


@pytest.mark.parametrize(
    "text",
    [
        "Sure-footed goats climb a steep rock face.",
        "Here is a place where two rivers meet.",
        "Yes, we are open: a neon sign glows above the door.",
        "Of course the cat sleeps on the only warm chair.",
        "A sign says: let me know if it rains. Two men laugh.",
        "Model: a woman in a long coat, standing by a lake.",
        "The description: a man, a dog, and a <b>bold</b> sign.",
        "A crowd waits. If you have a ticket, a board says, use gate B.",
    ],
)
def test_descriptions_that_look_like_greetings_keep_their_words(text):
    cleaned, flag = clean_caption(text, PROMPT)
    assert flag is None and len(cleaned) >= 0.8 * len(text)


@pytest.mark.parametrize("text", ["<think>It may be a boat", "<think>a boat</think>\n", "a boat, I guess </think> "])
def test_a_thought_alone_is_flagged(text):
    assert clean_caption(text, PROMPT) == ("", "thinking")


@pytest.mark.parametrize("piece", ["<think>", "</think>", "ich kann ", "let me know ", "< ", "sorry, ", "\n\n"])
def test_a_hostile_text_costs_little_time(piece):
    began = time.perf_counter()
    clean_caption(piece * 200_000, PROMPT)
    is_refusal(piece * 200_000)
    assert time.perf_counter() - began < 5


def test_an_echo_alone_is_empty():
    assert caption_flaw(clean_caption(PROMPT, PROMPT)[0]) == "empty"
