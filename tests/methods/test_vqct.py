"""VQCT: words and edges, the graph network against dense algebra, the host's codebook during and after training."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import corpus, made, step_of
from helpers.tiny_hosts import DDCONFIG

import tavq_plugin as tavq
from tavq_plugin.methods.vqct import VQCT
from tavq_plugin.methods.vqct_network import Transfer, words_of_codes
from tavq_plugin.methods.vqct_quantizer import PartOfSpeechQuantizer
from tavq_plugin.methods.word_graph import WordGraph, word_graph
from tavq_plugin.moved import written_settings
from tavq_plugin.text import Splitter

TEXTS = ["A red car and a red dog.", "The blue dog sees a red car.", None, "Red is not a car."]
KNOWN = {"red", "blue", "car", "dog"}


def test_words_and_edges_are_counted_over_the_texts():
    graph = word_graph(TEXTS, above=0, known=KNOWN)
    assert set(graph.words[: graph.adjectives]) >= {"red", "blue"} and set(graph.words[graph.adjectives :]) >= {
        "car",
        "dog",
    }
    by_name = {(graph.words[a], graph.words[n]): count for (a, n), count in graph.edges.items()}
    assert by_name == {("red", "car"): 2, ("red", "dog"): 1, ("blue", "dog"): 1}
    assert all(a < graph.adjectives <= n for a, n in graph.edges)
    counts = dict(zip(graph.words[graph.adjectives :], graph.counts[graph.adjectives :], strict=True))
    assert counts["car"] == 3 and counts["dog"] == 2


def test_rare_and_unknown_words_are_left_out():
    assert set(word_graph(TEXTS, above=2, known=KNOWN).words) == {"red", "car"}
    assert "dog" not in word_graph(TEXTS, above=0, known={"car"}).words
    with pytest.raises(ValueError, match="more than 10 times .* lower threshold="):
        word_graph(TEXTS, above=10, known=KNOWN)
    with pytest.raises(ValueError, match="parts of speech need a tagger"):
        list(Splitter(language="ja").tagged("赤い車"))


def test_forms_of_a_noun_are_one_word():
    texts = ["Two red cars and a car.", "Men in cars. A red man."]
    graph = word_graph(texts, above=0, known={"red", "cars", "car", "men", "two"})
    assert dict(zip(graph.words, graph.counts, strict=True)) == {"red": 2, "car": 3, "men": 2}  # "man" is not known
    by_name = {(graph.words[a], graph.words[n]): count for (a, n), count in graph.edges.items()}
    assert by_name == {("red", "car"): 1, ("red", "men"): 1}
    apart = word_graph(texts, above=0, known={"red", "cars", "car", "men", "two"}, lemmas=False)
    assert {"car", "cars"} <= set(apart.words)


def test_the_most_frequent_words_keep_their_edges():
    graph = WordGraph(("red", "blue", "car", "dog"), 2, (9, 1, 7, 5), {(0, 2): 4, (1, 3): 1, (0, 3): 2})
    kept = graph.most_frequent(3)
    assert kept == WordGraph(("red", "car", "dog"), 1, (9, 7, 5), {(0, 1): 4, (0, 2): 2})
    assert graph.most_frequent(10) == graph


GRAPH = WordGraph(("red", "blue", "car", "dog"), 2, (9, 1, 7, 5), {(0, 2): 4, (1, 3): 1, (0, 3): 2})


def test_the_network_equals_two_graph_convolutions():
    words = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    apart = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    transfer = Transfer(words.float(), GRAPH, torch.Size([7, 3]), 5).double()
    torch.nn.init.normal_(transfer.bias)
    joined = torch.eye(4).double()
    for (a, n), count in GRAPH.edges.items():
        joined[a, n] += count
        joined[n, a] += count
    scale = joined.sum(1).rsqrt()
    joined = scale[:, None] * joined * scale
    x = F.normalize(words, dim=1) * 6**0.5
    h = torch.relu(joined @ x @ transfer.first.weight.T + transfer.first.bias)
    codes = joined @ h @ transfer.second.weight.T + transfer.bias
    expected = codes[[0, 0, 1, 1, 2, 2, 3]]
    expected[[1, 3, 5]] += apart[[1, 3, 5]]
    torch.testing.assert_close(transfer(apart), expected, rtol=1e-5, atol=1e-6)
    transfer.seen = joined @ x
    torch.testing.assert_close(transfer(apart), expected)
    torch.autograd.gradcheck(transfer, apart.requires_grad_())


def test_words_without_an_edge_have_different_codes():
    lonely = WordGraph(("red", "car"), 1, (2, 2), {})
    torch.manual_seed(0)  # for some weights both codes are 0, after the activation
    codes = Transfer(torch.eye(2), lonely, torch.Size([2, 3]), 4)(torch.zeros(2, 3))
    assert codes.shape == (2, 3) and not torch.equal(codes[0], codes[1])


def test_the_network_makes_the_codebook_and_one_code_moves_the_others():
    tokenizer, one = made("vqct")
    weight, k = tokenizer.adapter.codebook(), 32
    assert len(one.graph.words) < k
    for word in words_of_codes(len(one.graph.words), k).unique():  # codes of a repeated word differ
        codes = weight.detach()[words_of_codes(len(one.graph.words), k) == word]
        assert len(codes.unique(dim=0)) == len(codes)
    moved = torch.autograd.grad(weight[0].sum(), list(tokenizer.host.quantize.parameters()), allow_unused=True)
    before = weight.detach().clone()
    with torch.no_grad():
        for parameter, gradient in zip(tokenizer.host.quantize.parameters(), moved, strict=True):
            if gradient is not None:
                parameter -= 0.1 * gradient
    assert ((tokenizer.adapter.codebook() - before).norm(dim=1) > 0).all()


def test_the_most_frequent_words_are_taken_if_there_are_too_many():
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import VQGAN

    tokenizer = tavq.wrap(VQGAN(DDCONFIG, n_embed=4, embed_dim=8))
    one = VQCT(tokenizer, corpus(), threshold=0)
    everything = word_graph(corpus().texts[:6], above=0, known=set(corpus().store.vocabulary))
    assert len(everything.words) > 4 and one.graph == everything.most_frequent(4)
    assert min(one.graph.counts) >= sorted(everything.counts)[-4]
    assert tokenizer.adapter.codebook().shape == (4, 8)


def test_finish_restores_the_hosts_class_and_parameter():
    tokenizer, one = made("vqct")
    plain = type(made("vqgan")[0].host.quantize.embedding)
    one.finish()
    table = tokenizer.host.quantize.embedding
    assert type(table) is plain and isinstance(table.weight, torch.nn.Parameter) and table.weight.requires_grad
    step = step_of(tokenizer)
    (step.reconstruction.square().mean() + step.codes.loss).backward()
    assert table.weight.grad is not None


def after_settling(method, **options):
    """Share of the codes in use and relative quantization error at the first step with codes."""
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from helpers import toy_corpus

    from tavq_plugin.training.loop import TrainingLoop

    data = toy_corpus.corpus(34, 32)
    asked = toy_corpus.recipe(
        method=method, options=options, steps=20, start={"settle_share": 0.5, "revive_every": 5}, batch_size=8
    )
    loop = TrainingLoop(asked, data, Accelerator(cpu=True))
    for _ in range(11):
        loop.step()
    with torch.no_grad():
        final = loop.tokenizer.eval().encode(data.images[:32].float() / 127.5 - 1).final
    loop.close()
    z, e = (x.movedim(1, 3).flatten(0, 2) for x in (final.latent, final.quantized))
    error = (z - e).square().sum() / (z - z.mean(0)).square().sum()
    return len(final.indices.unique()) / 32, error.item()


def test_after_the_settle_the_codebook_is_as_near_to_the_latents_as_a_shared_table():
    usage, error = after_settling("vqct", threshold=1)
    shared_usage, shared_error = after_settling("vqgan")
    unfitted_usage, unfitted_error = after_settling("vqct", threshold=1, fitted=False)
    assert unfitted_error > 3 * shared_error  # what was wrong: the codebook is far from the latents
    assert error < 1.5 * shared_error and usage > 0.75 * shared_usage > unfitted_usage


def test_the_bits_of_a_place_and_those_of_the_release_are_known():
    _, one = made("vqct")
    adjectives, nouns = one.graph.adjectives, len(one.graph.words) - one.graph.adjectives
    assert adjectives >= 2 and nouns
    assert one.bits_per_place == (5.0, pytest.approx(math.log2(math.comb(adjectives, 2) * nouns)))


def test_a_run_from_before_keeps_plurals_and_is_not_fitted():
    before = written_settings({"method": "vqct", "options": {"threshold": 3}})["options"]
    assert before == {"lemmas": False, "fitted": False, "threshold": 3}
    assert VQCT.resolved_options({"threshold": 3}, before) == before
    assert VQCT.resolved_options({}) == {"lemmas": True, "fitted": True} and not VQCT.takes_restarts({})


def test_three_codes_of_a_place_equal_the_releases_quantizer():
    """`vqct_VectorQuantizer3`: topk 2 of the adjectives, averaged, in one half; the nearest noun in the other."""
    torch.manual_seed(0)
    quantizer, z = PartOfSpeechQuantizer(12, 8, beta=0.25, legacy=True), torch.randn(2, 8, 3, 3)
    quantizer.adjectives.fill_(5)
    table = torch.nn.init.normal_(quantizer.embedding.weight).detach()
    vectors, loss, (_, raw, codes) = quantizer(z)
    expected, losses = torch.zeros_like(z), 0.0
    for b in range(2):
        for y in range(3):
            for x in range(3):
                adjective, noun = z[b, :4, y, x], z[b, 4:, y, x]
                near = sorted(range(5), key=lambda i: ((adjective - table[i, :4]) ** 2).sum().item())[:2]
                best = min(range(5, 12), key=lambda i: ((noun - table[i, 4:]) ** 2).sum().item())
                assert codes[b, y, x].tolist() == [*near, best]
                expected[b, :, y, x] = torch.cat([table[near, :4].mean(0), table[best, 4:]])
    for half in (slice(0, 4), slice(4, 8)):
        apart = (expected[:, half] - z[:, half]).square().mean()
        losses = losses + apart + 0.25 * apart
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, losses, rtol=1e-5, atol=0)


def test_a_run_of_three_codes_a_place_is_saved_and_read_again(tmp_path):
    pytest.importorskip("accelerate")
    from helpers import toy_corpus

    from tavq_plugin.evaluation.sources.finished_runs import runs_in
    from tavq_plugin.training import fit

    data = toy_corpus.corpus(34, 32)
    data = replace(data, texts=[f"{text}, small and old" if i % 2 else text for i, text in enumerate(data.texts)])
    asked = toy_corpus.recipe(
        options={"threshold": 1, "codes_per_place": 3}, steps=8, start={"settle_share": 0.5}, batch_size=8
    )
    fitted = fit("vqct", asked, data, tmp_path / "run")
    (run,) = runs_in(tmp_path / "run", None, allow=())
    again = run.load().tokenizer
    images = data.images[:2].float() / 127.5 - 1
    with torch.no_grad():
        ours, theirs = (t.eval().encode(images).final.quantized for t in (fitted.tokenizer, again))
    assert torch.equal(ours, theirs)
    facts = fitted.method.facts()
    triples = math.comb(int(facts["adjectives"]), 2) * facts["nouns"]
    assert facts["bits_per_place"] == pytest.approx(math.log2(triples))


def test_three_codes_need_a_prepared_host():
    with pytest.raises(ValueError, match="build it from a recipe"):
        made("vqct", codes_per_place=3)
    with pytest.raises(ValueError, match="must be 1 or 3"):
        made("vqct", codes_per_place=2)
    with pytest.raises(ValueError, match="Linear has none: leave codes_per_place out"):
        VQCT.prepare_host(torch.nn.Linear(1, 1), {"codes_per_place": 3})
