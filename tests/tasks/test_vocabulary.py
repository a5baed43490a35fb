"""Texts to numbers and back."""

import torch

from tavq_plugin.tasks.vocabulary import END, PADDING, START, UNKNOWN, Vocabulary, padded, unknown_share

TEXTS = ["The red circle is large.", "A man's T-shirt, at the top left."]


def test_a_text_of_known_words_comes_back():
    vocabulary = Vocabulary.of(TEXTS)
    for text in TEXTS:
        assert vocabulary.text([START, *vocabulary.numbers(text), END, 5, PADDING]) == text.lower()


def test_the_vocabulary_does_not_depend_on_the_order_of_texts_and_keeps_the_commonest():
    assert Vocabulary.of(TEXTS) == Vocabulary.of(TEXTS[::-1])
    assert Vocabulary.of(["b a", "b"], at_most=1).words == ("b",)


def test_unknown_words_are_counted_and_shown():
    vocabulary = Vocabulary.of(["a red dog"])
    assert vocabulary.numbers("A blue dog")[1] == UNKNOWN
    assert vocabulary.text(vocabulary.numbers("a blue dog")) == "a <unknown> dog"
    assert unknown_share(["a blue dog runs"], vocabulary) == 0.5 and unknown_share([], vocabulary) == 0


def test_rows_without_any_words_have_a_shape():
    assert padded([[], []]).shape == (2, 0) and padded([[7], []]).dtype == torch.long
