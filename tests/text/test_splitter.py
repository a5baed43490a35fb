"""Splitting: quality on hand-annotated text, places of units, and odd texts."""

import importlib
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tavq_plugin.text import Splitter, frequent_units, split


def test_content_words_and_noun_phrases_of_annotated_text(annotated):
    splitter = Splitter(phrases=("noun",))
    hits = {"word": 0, "phrase": 0}
    found, wanted = dict(hits), dict(hits)
    for marked in annotated.MARKED:
        text, words, phrases = annotated.read(marked)
        units = splitter(text)
        for granularity, truth in (("word", words), ("phrase", phrases)):
            got = set(units.texts(granularity))
            hits[granularity] += len(got & truth)
            found[granularity] += len(got)
            wanted[granularity] += len(truth)
    assert hits["word"] / found["word"] >= 0.95
    assert hits["word"] / wanted["word"] >= 0.95
    assert 2 * hits["phrase"] / (found["phrase"] + wanted["phrase"]) >= 0.88


def test_sentences_of_annotated_text(annotated):
    numbers = [len(split(annotated.read(marked)[0]).sentence) for marked in annotated.MARKED]
    assert tuple(numbers) == annotated.SENTENCES


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Black and white dogs run.", ["black and white dogs"]),
        ("A group of people in front of the old town hall.", ["group", "people", "old town hall"]),
        ("The dog's toy is next to two wet, muddy boots.", ["dog's toy", "two wet, muddy boots"]),
        ("A woman wearing blue jeans.", ["woman", "blue jeans"]),
        ("Woman with painted nails.", ["woman", "painted nails"]),
        ("They can't see it.", []),
    ],
)
def test_noun_phrases(text, phrases):
    assert Splitter(phrases=("noun",))(text).texts("phrase") == phrases


def test_verb_phrases_hold_the_verbs_object():
    assert Splitter(phrases=("verb",))("A boy wearing a red hat jumps over the fence. He runs.").texts("phrase") == [
        "wearing a red hat",
        "jumps over the fence",
    ]


def test_kinds_of_words_can_be_chosen():
    assert Splitter(words=("noun", "number"))("Two red cars are passing.").texts("word") == ["two", "cars"]


def test_units_are_distinct_in_order_with_counts_and_places():
    text = "A dog runs.  The Dog sleeps near a red  car. A dog runs."
    units = split(text)
    assert [(unit.text, unit.count) for unit in units.word][:2] == [("dog", 3), ("runs", 2)]
    assert [unit.count for unit in units.sentence] == [2, 1]
    (car,) = (unit for unit in units["phrase"] if unit.text == "red car")
    assert text[car.start : car.end] == "red  car"


def test_quotes_line_breaks_and_decomposed_letters():
    text = "“The man’s cafe\u0301”\n\n• a sign\r\nit isn’t open"
    units = split(text)
    assert units.texts("sentence") == ['"The man\'s café"', "a sign", "it isn't open"]
    assert units.texts("word") == ["man", "café", "sign", "open"]
    assert text[units.word[1].start : units.word[1].end] == "cafe\u0301"


MARKDOWN = (
    "### Scene\n**Foreground:**\n1. A dog sits. 2. A cat runs.\n| a | b |\n|---|---|\n"
    "- A bus, e.g. a red one, approx. 3 m long\n> A *wide* `street`"
)


def test_marks_of_markdown_and_numbers_of_lists_are_no_units():
    units = split(MARKDOWN)
    assert units.texts("sentence") == [
        "Scene", "Foreground:", "A dog sits.", "A cat runs.", "a; b", "A bus, e.g. a red one, approx. 3 m long",
        "A wide street",
    ]  # fmt: skip
    assert not {"e", "g", "e.g.", "1", "2"} & {*units.texts("word"), *units.texts("phrase")}
    assert {"dog", "bus", "wide", "street", "3"} <= set(units.texts("word"))
    (bus,) = (unit for unit in units.word if unit.text == "bus")
    assert MARKDOWN[bus.start : bus.end] == "bus"


@pytest.mark.parametrize(
    "text",
    ["2.", "2 * 3 is 6", "A sign reads 5. It hangs.", "3.5 m of rope", "my_old_file.png lies here", "-5 degrees"],
)
def test_what_only_looks_like_markdown_stays(text):
    assert "".join(split(text).texts("sentence")).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", [None, "", "  \n\t ", "...", "🙂 🙂", "—"])
def test_a_text_without_words_has_no_units(text):
    assert split(text) == split("")
    assert not split(text).sentence


def test_other_scripts_keep_their_sentences_and_lose_words_and_phrases():
    units = split("一只狗在跑。天空是蓝色的。")
    assert len(units.sentence) == 2
    assert not units.word
    assert not units.phrase


def test_a_very_long_token_is_not_a_word():
    assert split("x" * 5000 + " and a dog").texts("word") == ["dog"]


def test_wrong_settings_and_types_say_what_is_needed():
    with pytest.raises(ValueError, match="'noun', 'adjective'"):
        Splitter(words=("nouns",))
    with pytest.raises(ValueError, match="tuple of 'noun', 'verb'"):
        Splitter(phrases="noun")
    with pytest.raises(TypeError, match="got dict"):
        split({"text": "a dog"})
    with pytest.raises(KeyError, match="no granularity 'token'"):
        split("a dog")["token"]


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("ab .,;'\"-\n19éñ🙂中tn\u0301’()“A\ud800\x00"), max_size=80) | st.text(max_size=60))
def test_any_text_splits_into_units_that_lie_in_it(text):
    units = split(text)
    for granularity in ("word", "phrase", "sentence"):
        strings = units.texts(granularity)
        assert len(set(strings)) == len(strings)
        for unit in units[granularity]:
            assert unit.text
            assert 0 <= unit.start < unit.end <= len(text)
            assert unit.count >= 1


@pytest.mark.parametrize(("name", "words"), [("long", 100), ("short", 30), ("markdown", 65)])
def test_descriptions_annotated_by_hand(monkeypatch, name, words):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "units", raising=False)
    benchmark = importlib.import_module("units")
    descriptions = benchmark.read(name)
    assert len(descriptions) >= 40
    assert sum(len(description.text.split()) for description in descriptions) >= words * len(descriptions)
    scores = benchmark.quality(descriptions)
    targets = benchmark.MARKDOWN_TARGETS if name == "markdown" else benchmark.TARGETS
    for unit, least in targets.items():
        assert scores[unit]["f1"] >= least, (unit, scores[unit])


def test_german():
    text = "Zwei Frauen tragen rote Mäntel; sie haben „drei große Taschen“ gekauft. Im Haus schläft ihr alter Hund."
    units = Splitter(language="de")(text)
    assert units.texts("word") == [
        "zwei",
        "frauen",
        "tragen",
        "rote",
        "mäntel",
        "drei",
        "große",
        "taschen",
        "gekauft",
        "haus",
        "schläft",
        "alter",
        "hund",
    ]
    assert units.texts("phrase")[:4] == ["zwei frauen", "tragen rote mäntel", "rote mäntel", "drei große taschen"]
    assert "alter hund" in units.texts("phrase")
    assert len(units.sentence) == 2
    assert all(text[unit.start : unit.end].lower() == unit.text for unit in units.phrase)


def test_dutch():
    units = Splitter(language="nl", phrases=("noun",))("Een kleine hond rent over het natte gras. Hij is bruin.")
    assert units.texts("word") == ["kleine", "hond", "rent", "natte", "gras", "bruin"]
    assert units.texts("phrase") == ["kleine hond", "natte gras"]
    assert len(units.sentence) == 2


@pytest.mark.parametrize(
    ("language", "text"), [("zh", "一只狗在跑。天空是蓝色的！"), ("ja", "犬が走っている。空は青いですか？")]
)
def test_chinese_and_japanese_sentences_and_words_by_a_segmenter(language, text, monkeypatch):
    plain = Splitter(language=language)
    assert plain.supported == ("sentence",)
    assert [text[unit.start : unit.end] for unit in plain(text).sentence] == plain(text).texts("sentence")
    assert len(plain(text).sentence) == 2 and not plain(text).word and not plain(text).phrase
    module = types.ModuleType("pairs")
    module.cut = lambda sentence: [sentence[i : i + 2] for i in range(0, len(sentence), 2)]
    monkeypatch.setitem(sys.modules, "pairs", module)
    cut = Splitter(language=language, segmenter="pairs:cut")
    assert cut.supported == ("word", "sentence")
    assert cut(text).texts("word")[:2] == [text[:2], text[2:4]]
    assert all(text[unit.start : unit.end] == unit.text for unit in cut(text).word)
    with pytest.raises(ImportError, match="give 'module:function'"):
        Splitter(language=language, segmenter="nothing:here")(text)


def test_a_spacy_model_replaces_the_tagger(tmp_path):
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    model = spacy.blank("en")  # tags by a table of rules: a real pipeline, without trained weights
    tags = {"a": "DET", "red": "ADJ", "hat": "NOUN", "boy": "NOUN", "wearing": "VERB", "runs": "VERB", "of": "ADP"}
    for word, tag in tags.items():
        pattern = [[{"LOWER": word}]]
        ruler = model.get_pipe("attribute_ruler") if model.pipe_names else model.add_pipe("attribute_ruler")
        ruler.add(patterns=pattern, attrs={"POS": tag, **({"TAG": "VBG"} if word == "wearing" else {})})
    model.meta["name"], model.meta["version"] = "rules", "1.2"
    model.to_disk(tmp_path / "model")
    splitter = Splitter(spacy=str(tmp_path / "model"))
    text = "A boy  wearing a red hat runs."
    units = splitter(text)
    assert units.texts("word") == ["boy", "wearing", "red", "hat", "runs"]
    assert units.texts("phrase") == ["boy", "wearing a red hat", "red hat"]
    assert text[units.phrase[1].start : units.phrase[1].end] == "wearing a red hat"
    assert "spacy-en-rules-1.2" in splitter.fingerprint
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="no parts of speech"):
        Splitter(spacy=str(tmp_path / "blank"))(text)


def test_a_missing_spacy_model_says_how_to_get_it():
    with pytest.raises(ImportError, match="pip install spacy"):
        Splitter(spacy="xx_no_such_model")("A dog.")


def test_very_frequent_units_can_be_left_out():
    texts = [f"The image shows a {thing}." for thing in ("red car", "dog", "boat", "red house")]
    stop = frequent_units(texts, share=0.5)
    assert stop == {"image", "shows"}
    units = Splitter(stop=stop)(texts[0])
    assert units.texts("word") == ["red", "car"] and "image" not in units.texts("phrase")
    assert units.texts("sentence") == [texts[0]]
    with pytest.raises(ValueError, match="above 0"):
        frequent_units(texts, share=0)


def test_settings_are_in_the_fingerprint_and_checked():
    kinds = [Splitter(), Splitter(language="de"), Splitter(stop={"a"}), Splitter(stop={"b"}), Splitter(phrases=())]
    kinds += [Splitter(language="ja"), Splitter(language="ja", segmenter="m:f")]
    assert len({splitter.fingerprint for splitter in kinds}) == len(kinds)
    with pytest.raises(ValueError, match="one of en, de, nl"):
        Splitter(language="fr")
    with pytest.raises(ValueError, match="only zh and ja"):
        Splitter(segmenter="m:f")
    with pytest.raises(ValueError, match="set of strings"):
        Splitter(stop="image")
