"""The words of a code, with their evidence and chance."""

import math
import time

import pytest
import torch

from tavq_plugin.use.code_words import code_words


def _presence(n, width, seed, share=0.3):
    return torch.rand(n, width, generator=torch.Generator().manual_seed(seed)) < share


def test_counts_information_and_chance_equal_those_of_a_plain_loop():
    codes, words = _presence(30, 4, 0), _presence(30, 3, 1)
    words[:, 2] = False
    found = code_words(codes, words, shuffles=20, seed=5)

    def information(a, b):
        both = sum(bool(x and y) for x, y in zip(a, b, strict=True))
        return max(0.0, math.log(len(a) * both / (sum(a) * sum(b)))) if both else 0.0

    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(30, generator=generator) for _ in range(20)]
    for code in range(4):
        for word in range(3):
            a, b = codes[:, code].tolist(), words[:, word].tolist()
            assert found.together[code, word] == sum(bool(x and y) for x, y in zip(a, b, strict=True))
            assert found.information[code, word].item() == pytest.approx(information(a, b), abs=1e-6)
            by_chance = sorted(information(a, words[order, word].tolist()) for order in orders)
            assert found.chance[code, word].item() == pytest.approx(sum(by_chance) / 20, abs=1e-6)
            assert found.chance_high[code, word].item() == pytest.approx(by_chance[18], abs=1e-6)
    assert found.code_images.tolist() == codes.sum(0).tolist() and found.word_images.tolist() == words.sum(0).tolist()


def test_a_planted_word_is_first_and_above_chance():
    codes, words = _presence(200, 20, 0), _presence(200, 50, 1)
    words[:, 7] = codes[:, 3]
    found = code_words(codes, words)
    assert found.top_words(3)[0].index == 7 and found.top_words(3)[0].above_chance
    assert found.top_codes(7)[0].index == 3 and found.top_codes(7)[0].above_chance


def test_of_codes_that_know_nothing_about_one_in_twenty_has_a_word_above_chance():
    codes, words = _presence(300, 400, 2, share=0.05), _presence(300, 100, 3, share=0.05)
    above = code_words(codes, words, shuffles=40).above_chance
    assert above.any(1).float().mean() < 0.12
    assert above.float().mean() < 0.002


def test_one_meeting_of_a_rare_word_and_a_rare_code_is_no_evidence():
    codes, words = _presence(300, 5, 2, share=0.1), _presence(300, 400, 3, share=0.005)
    codes[:, 0], words[:, 0] = torch.arange(300) == 4, torch.arange(300) == 4
    found = code_words(codes, words)
    assert found.information[0, 0] > found.chance_high[0, 0] and not found.above_chance[0, 0]


def test_blocks_of_codes_change_nothing(monkeypatch):
    codes, words = _presence(30, 7, 0), _presence(30, 5, 1)
    whole = code_words(codes, words)
    monkeypatch.setattr("tavq_plugin.use.code_words.AT_ONCE", 2 * 5)
    parts = code_words(codes, words)
    assert all(
        torch.equal(getattr(whole, name), getattr(parts, name)) for name in ("chance", "chance_high", "above_chance")
    )


def test_all_codes_of_500_images_take_less_than_ten_seconds():
    codes, words = _presence(500, 1024, 0, share=0.1), _presence(500, 1000, 1, share=0.02)
    start = time.thread_time()
    code_words(codes, words)
    assert time.thread_time() - start < 10


def test_an_unused_code_has_no_words():
    codes = _presence(30, 2, 0)
    codes[:, 1] = False
    assert code_words(codes, _presence(30, 5, 1)).top_words(1) == []


@pytest.mark.parametrize(
    ("shapes", "shuffles", "message"),
    [(((3, 2), (4, 2)), 20, "one row for each image"), (((0, 2), (0, 2)), 20, "at least one image"),
     (((3, 2), (3, 2)), 5, "at least 20")],
)  # fmt: skip
def test_bad_input_is_refused(shapes, shuffles, message):
    with pytest.raises(ValueError, match=message):
        code_words(*(torch.ones(shape).bool() for shape in shapes), shuffles=shuffles)
