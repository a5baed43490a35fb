"""Text metrics against scikit-learn, POT, NumPy and plain loops."""

import itertools

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score, mutual_info_score, top_k_accuracy_score
from sklearn.preprocessing import StandardScaler

from tavq_plugin.evaluation.metrics.average_precision import average_precision_per_image
from tavq_plugin.evaluation.metrics.permuted_texts import permuted_positions
from tavq_plugin.evaluation.metrics.purity import code_word_purity, mutual_information
from tavq_plugin.evaluation.metrics.relation import similarity_error, similarity_errors
from tavq_plugin.evaluation.metrics.retrieval import (
    centred_cosines,
    own_ranks,
    recall_from_scores,
)
from tavq_plugin.evaluation.metrics.stability import code_word_stability
from tavq_plugin.evaluation.metrics.transport_retrieval import transport_scores
from tavq_plugin.evaluation.metrics.words import OTHER_CODES, masked_words
from tavq_plugin.evaluation.probes.ridge import fit_ridge
from tavq_plugin.types import Units


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_average_precision(scores, present):
    """scikit-learn's, in percent, over the words that any image has."""
    words = [word for word in range(present.shape[1]) if present[:, word].any()]
    each = [average_precision_score(present[:, word].numpy(), scores[:, word].numpy()) for word in words]
    return 100 * np.mean(each)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([1, 2, 5, 1000]))
def test_average_precision_equals_that_of_scikit_learn_with_any_ties(seed, n, values):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (n, 6), generator=draw) / values
    present = torch.rand(n, 6, generator=draw) < 0.3
    present[0, 0] = True
    parts = average_precision_per_image(scores, present)
    assert parts.mean().item() == pytest.approx(mean_average_precision(scores, present), rel=1e-9)
    assert parts[~present.any(1)].abs().sum() == 0


def test_constant_scores_have_the_base_rate_as_average_precision():
    present = random(200, 5) > 0.8
    base_rate = 100 * present.double().mean(0).mean().item()
    for scores in (torch.zeros(200, 5), torch.full((200, 5), 0.1) + 1e-17 * random(200, 5)):
        assert average_precision_per_image(scores, present).mean().item() == pytest.approx(base_rate)
    assert average_precision_per_image(torch.zeros(4, 0), torch.zeros(4, 0, dtype=torch.bool)).isnan().all()


def test_the_order_of_the_images_does_not_change_average_precision():
    present, scores = random(60, 4) > 0.7, random(60, 4, seed=1).round()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    parts = average_precision_per_image(scores, present)
    torch.testing.assert_close(average_precision_per_image(scores[order], present[order]), parts[order])


def test_average_precision_refuses_nan_and_other_shapes():
    present = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="not finite"):
        average_precision_per_image(torch.full((3, 2), torch.nan), present)
    with pytest.raises(ValueError, match="one score per word"):
        average_precision_per_image(torch.zeros(3, 1), present)


def test_recall_equals_top_k_accuracy_and_ranks_a_plain_loop():
    images, texts = random(40, 8), random(40, 8) + random(40, 8, seed=1)
    scores = centred_cosines(images, texts)
    recalls = recall_from_scores(scores, at=(1, 5, 10))
    centred = [side - side.mean(0) for side in (images, texts)]
    expected = torch.tensor([[F.cosine_similarity(x, y, dim=0) for y in centred[1]] for x in centred[0]])
    torch.testing.assert_close(scores.float(), expected, rtol=1e-4, atol=1e-5)
    for k in (1, 5, 10):
        accuracy = top_k_accuracy_score(np.arange(40), scores.numpy(), k=k)
        assert recalls[f"r{k}"].mean().item() == pytest.approx(accuracy)
    ranks = [sorted(row.tolist(), reverse=True).index(row[i].item()) + 1 for i, row in enumerate(scores)]
    assert own_ranks(scores).tolist() == ranks


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_tied_ranks_and_recalls_are_means_over_all_orders_of_the_ties(seed):
    score = torch.randint(0, 3, (4, 4), generator=torch.Generator().manual_seed(seed)).double()
    orders = list(itertools.permutations(range(4)))  # the order in which ties are broken
    for i, row in enumerate(score.tolist()):
        ranks = [
            sorted(range(4), key=lambda j, row=row, order=order: (-row[j], order[j])).index(i) + 1 for order in orders
        ]
        assert own_ranks(score)[i].item() == pytest.approx(np.mean(ranks))
        expected = np.mean([rank <= 2 for rank in ranks])
        assert recall_from_scores(score, at=(2,))["r2"][i].item() == pytest.approx(expected)


def test_mutual_information_equals_that_of_scikit_learn_for_one_word_and_one_code_an_image():
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(0, 5, (80,), generator=draw)
    codes = (words + torch.randint(0, 3, (80,), generator=draw)) % 6
    ours = mutual_information(F.one_hot(codes, 6).float(), F.one_hot(words, 5).bool())
    assert ours == pytest.approx(mutual_info_score(words.numpy(), codes.numpy()) / np.log(2))


def test_purity_and_its_null_equal_a_plain_loop():
    histograms, words = random(30, 4).softmax(1), random(30, 5, seed=1) > 0.5
    words[:, 0] = True
    orders = list(permuted_positions(30, permutations=7))

    def information(texts):
        joint = np.zeros((4, 5))
        for code, word in itertools.product(range(4), range(5)):
            for i in range(30):
                joint[code, word] += histograms[i, code] * texts[i, word] / texts[i].sum() / 30
        p, q = joint.sum(1), joint.sum(0)
        terms = [
            joint[c, w] * np.log2(joint[c, w] / p[c] / q[w]) for c in range(4) for w in range(5) if joint[c, w] > 0
        ]
        return 1000 * sum(terms)

    null = [information(words[order].numpy()) for order in orders]
    purity = code_word_purity(histograms, words, permutations=7)
    assert purity.information == pytest.approx(information(words.numpy()), rel=1e-5)
    assert purity.null == pytest.approx(np.mean(null), rel=1e-5)
    assert purity.null_spread == pytest.approx(np.std(null, ddof=1), rel=1e-4)
    assert purity.excess == pytest.approx(purity.information - purity.null)


def test_masked_words_equal_a_plain_loop_with_scikit_learns_ridge():
    draw = torch.Generator().manual_seed(0)
    words = torch.rand(60, 6, generator=draw) < 0.35
    codes = words.float() @ random(6, 5) + 2 * random(60, 5, seed=1)
    vectors = random(6, 3, seed=2)
    train, held_out, penalties = slice(0, 40), slice(40, 60), (0.1, 1, 10, 100, 1000, 1e4, 1e5)

    def maskings(texts, rows):
        pairs = [(i, word) for i, row in enumerate(texts) for word in range(6) if row[word]]
        features, targets = [], []
        for i, word in pairs:
            others = [vectors[other].numpy() for other in range(6) if texts[i, other] and other != word]
            context = np.mean(others, axis=0) if others else np.zeros(3)
            features.append(context if rows is None else np.concatenate([rows[i].numpy(), context]))
            targets.append(np.eye(6)[word])
        return pairs, np.array(features, dtype=np.float64), np.array(targets)

    def shares(fit_rows, test_rows):
        _, features, targets = maskings(words[train], fit_rows)
        scaler = StandardScaler().fit(features)
        probe = RidgeCV(penalties).fit(scaler.transform(features), targets)
        assert penalties[0] < probe.alpha_ < penalties[-1]
        pairs, features, _ = maskings(words[held_out], test_rows)
        right = [[] for _ in range(20)]
        for (i, word), scores in zip(pairs, probe.predict(scaler.transform(features)), strict=True):
            allowed = [w for w in range(6) if w == word or not words[held_out][i, w]]
            right[i].append(max(allowed, key=lambda w, scores=scores: scores[w]) == word)
        return np.array([np.mean(each) if each else np.nan for each in right])

    guessed = masked_words(codes[train], codes[held_out], words[train], words[held_out], vectors, penalties=penalties)
    np.testing.assert_allclose(guessed.with_codes.numpy(), shares(codes[train], codes[held_out]))
    np.testing.assert_allclose(guessed.text_alone.numpy(), shares(None, None))
    orders = permuted_positions(20, permutations=OTHER_CODES)
    others = np.stack([shares(codes[train], codes[held_out][order]) for order in orders])
    np.testing.assert_allclose(guessed.with_other_codes.numpy(), others.mean(0))
    assert guessed.chance.mean == pytest.approx(np.nanmean(others))
    assert guessed.chance.spread == pytest.approx(np.nanmean(others, axis=1).std(ddof=1))


def transport_problem(images=5, units=4, width=3):
    """Codes of a small codebook that repeat within an image, texts of several lengths, and a fitted probe."""
    draw = torch.Generator().manual_seed(0)
    codebook = random(6, width, seed=1)
    indices = torch.randint(0, 6, (images, 2, 3), generator=draw)
    quantized = codebook[indices].permute(0, 3, 1, 2)
    mask = torch.arange(units) < torch.tensor([4, 1, 3, 2, 4])[:images, None]
    texts = Units(random(images, units, 4, seed=2), mask)
    probe = fit_ridge(random(20, width, seed=3), random(20, 4, seed=4), penalty=1.0)
    return quantized, indices, texts, probe


def exact_scores(quantized, texts, probe):
    """Plain loop over images and texts with POT, every place of an image a point of equal mass."""
    cost = np.zeros((len(quantized), len(quantized)))
    for i, j in itertools.product(range(len(quantized)), repeat=2):
        points = F.normalize(probe.predict(quantized[i].flatten(1).T) - probe.offset, dim=1).numpy()
        units = F.normalize(texts.embeddings[j][texts.mask[j]].double(), dim=1).numpy()
        table = ((points[:, None] - units[None]) ** 2).sum(2)
        cost[i, j] = ot.emd2(np.full(len(points), 1 / len(points)), np.full(len(units), 1 / len(units)), table)
    return cost.mean(0, keepdims=True) + cost.mean(1, keepdims=True) - cost - cost.mean()


def test_transport_scores_equal_pots_exact_costs():
    quantized, indices, texts, probe = transport_problem()
    expected = exact_scores(quantized, texts, probe)
    exact = transport_scores(quantized, indices, texts, probe, solver="emd")
    np.testing.assert_allclose(exact.numpy(), expected, atol=1e-5)
    blurred = transport_scores(quantized, indices, texts, probe)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=0.1 * expected.std())


def test_stability_equals_a_plain_loop():
    words = random(40, 6) > 0.4
    words[:, 0] = True
    train = [random(50, 8, seed=seed).abs() for seed in (1, 2)]
    held_out = [random(40, 8, seed=seed).abs() for seed in (3, 4)]
    train[0][:, 7] = 0  # a code that no training image uses
    columns = [[code for code in range(8) if side[:, code].sum() > 0] for side in train]
    correlation = [
        [np.corrcoef(train[0][:, a].numpy(), train[1][:, b].numpy())[0, 1] for b in columns[1]] for a in columns[0]
    ]
    pairs = [
        (columns[0][a], columns[1][b]) for a, b in zip(*linear_sum_assignment(-np.array(correlation)), strict=True)
    ]

    def table(histograms, texts, code):
        share = texts / texts.sum(1, keepdims=True)
        weight = histograms[:, code].numpy()
        return (weight[:, None] * share).sum(0) / weight.sum() - share.mean(0)

    def agreement(texts):
        texts, total, weights = texts.double().numpy(), 0.0, 0.0
        for a, b in pairs:
            weight = np.sqrt(held_out[0][:, a].mean().item() * held_out[1][:, b].mean().item())
            total += weight * np.corrcoef(table(held_out[0], texts, a), table(held_out[1], texts, b))[0, 1]
            weights += weight
        return total / weights

    stability = code_word_stability((train[0], held_out[0]), (train[1], held_out[1]), words, permutations=5)
    dealt = [agreement(words[order]) for order in permuted_positions(40, permutations=5)]
    assert stability.matched == pytest.approx(agreement(words), abs=1e-6)
    assert stability.dealt == pytest.approx(np.mean(dealt), abs=1e-6)
    assert stability.dealt_spread == pytest.approx(np.std(dealt, ddof=1), abs=1e-6)
    assert stability.excess == pytest.approx(stability.matched - stability.dealt)


def similarity_loop(codes, texts, mask, probe):
    values = []
    for i in range(len(codes)):
        points = [F.normalize(probe.predict(code[None])[0] - probe.offset, dim=0) for code in codes[i]]
        words = [F.normalize(word.double(), dim=0) for word, real in zip(texts[i], mask[i], strict=True) if real]
        picked = [max(points, key=lambda point, word=word: (point @ word).item()) for word in words]
        errors = [
            ((words[a] @ words[b]) - (picked[a] @ picked[b])).item() ** 2
            for a, b in itertools.permutations(range(len(words)), 2)
        ]
        values.append(np.mean(errors) if errors else np.nan)
    return np.array(values)


def test_similarity_and_its_control_equal_a_plain_loop():
    codes, texts = random(11, 7, 3), random(11, 5, 4, seed=1)
    mask = torch.arange(5) < torch.tensor([5, 4, 1, 3, 2, 5, 5, 2, 3, 4, 5])[:, None]
    probe = fit_ridge(random(20, 3, seed=3), random(20, 4, seed=4), penalty=1.0)
    errors = similarity_errors(codes, Units(texts, mask), probe, permutations=4)
    np.testing.assert_allclose(errors.own.numpy(), similarity_loop(codes, texts, mask, probe))
    np.testing.assert_allclose(similarity_error(codes, Units(texts, mask), probe).numpy(), errors.own.numpy())
    others = np.stack(
        [similarity_loop(codes, texts[order], mask[order], probe) for order in permuted_positions(11, permutations=4)]
    )
    np.testing.assert_allclose(errors.with_other_texts.numpy(), np.nanmean(others, axis=0))
    assert errors.chance.mean == pytest.approx(np.nanmean(others, axis=1).mean())
    assert errors.chance.spread == pytest.approx(np.nanmean(others, axis=1).std(ddof=1))
