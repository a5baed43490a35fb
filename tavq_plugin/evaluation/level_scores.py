"""What the codes of one level say about the text, by every probe; each probe is fitted on the training rows."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.evaluation.encoded_images import EncodedImages
from tavq_plugin.evaluation.metrics.cards import STORED
from tavq_plugin.evaluation.metrics.purity import code_word_purity
from tavq_plugin.evaluation.metrics.relation import similarity_errors
from tavq_plugin.evaluation.metrics.transport_retrieval import transport_scores
from tavq_plugin.evaluation.metrics.words import code_histograms
from tavq_plugin.evaluation.probes.attentive_probe import fit_attentive
from tavq_plugin.evaluation.probes.ridge import Ridge, places_of
from tavq_plugin.evaluation.probes.word_in_box import boxed_words, word_in_box
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.text_scores import (
    RECALL_AT,
    FittedProbes,
    HeldOutTexts,
    at_images,
    metrics_of_retrieval,
    retrieval_by_scores,
    retrieval_of_texts,
    word_map,
)
from tavq_plugin.evaluation.text_targets import TextTargets

BATCH = 50  # images whose random vectors are in memory at once
MIN_TEXTS = 5  # training and held-out texts that a probe needs


class LevelCodes:
    """The codes of one level, of the training and the held-out images, with the targets of its granularity.

    level: 1 to 3. position: that of the level in both `EncodedImages`. size: number of codes, None for features without
    codes.
    """

    def __init__(
        self,
        level: int,
        position: int,
        train: EncodedImages,
        held_out: EncodedImages,
        size: int | None,
        targets: TextTargets,
    ) -> None:
        self.level, self.position, self.size, self.targets = level, position, size, targets
        self.train, self.held_out = train, held_out
        self.permutations = targets.settings.permutations
        self.rows = targets.train_has_text[level - 1]  # n bool: the probes are fitted on these
        self.has_text = targets.held_out_has_text[level - 1]
        self.texts = self.texts_of(targets.held_out_means[level - 1], self.has_text)
        self.train_text = targets.train_means[level - 1][self.rows]
        self.train_words = targets.train_words[self.rows]

    @staticmethod
    def texts_of(vectors: Tensor, has_text: Tensor) -> HeldOutTexts:
        """The texts to be found, from vectors of all held-out images and which of them have text; n d, n."""
        return HeldOutTexts(has_text.nonzero().flatten(), vectors[has_text].double(), len(has_text))

    @property
    def indices(self) -> tuple[Tensor, Tensor] | None:
        """Indices of the training and held-out images, n h w each; None for features without codes."""
        sides = self.train.indices[self.position], self.held_out.indices[self.position]
        return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])


def level_scores(codes: LevelCodes) -> RunResults:
    """All text metrics of one level. Those without a value are named in `missing`, with the reason."""
    if min(codes.rows.sum(), codes.has_text.sum()) < MIN_TEXTS:
        count = f"{int(codes.rows.sum())} training and {int(codes.has_text.sum())} held-out texts have units"
        names = _retrieval_metrics(codes.level)
        maps = ("grid_word_map", "attentive_word_map", "word_map", "word_map_codes", "word_in_box_map", "purity")
        names += [f"{name}_{codes.level}" for name in maps]
        why = f"only {count} at level {codes.level}, and a probe needs {MIN_TEXTS} of each"
        return RunResults(missing=dict.fromkeys(names, why))
    results, pooled = pooled_scores(codes)
    results |= grid_scores(codes) | attentive_scores(codes) | box_scores(codes)
    if codes.indices is not None:
        results |= histogram_scores(codes) | transport_recalls(codes, pooled)
        if codes.level == STORED:
            results |= random_vector_scores(codes)
    return results


def pooled_scores(codes: LevelCodes) -> tuple[RunResults, Ridge | None]:
    """Retrieval both ways and word mAP of ridges on a level's mean codes; and the ridge towards the texts."""
    level, sides = codes.level, (codes.train.pooled[codes.position], codes.held_out.pooled[codes.position])
    probes = _probes(codes, sides[0])
    results, ridge = RunResults(), None
    with probes.named(*(f"{way}_r{k}_{level}" for way in ("image_text", "text_image") for k in RECALL_AT)):
        ridge = probes.towards(codes.train_text)
        predicted = ridge.predict(sides[1][codes.has_text])
        found = retrieval_of_texts(
            "image_text", level, predicted, codes.texts, ranks=False, permutations=codes.permutations
        )
        back = HeldOutTexts(codes.texts.images, predicted, codes.texts.n)
        results |= found | retrieval_of_texts(
            "text_image", level, codes.texts.vectors, back, ranks=False, permutations=codes.permutations
        )
    scores = _word_scores(codes, f"word_map_{level}", probes, sides[1])
    if scores is not None:
        results |= word_map(f"word_map_{level}", scores, codes.targets.held_out_words, permutations=codes.permutations)
        results |= RunResults(artifacts={f"word_scores_{level}": scores.float()})
    return results | RunResults(missing=probes.missing), ridge


def histogram_scores(codes: LevelCodes) -> RunResults:
    """Retrieval and word mAP of ridges on how often each code occurs in an image; and code–word purity."""
    assert codes.indices is not None and codes.size is not None
    sides = [code_histograms(side, codes.size) for side in codes.indices]
    results = _retrieval_and_words(codes, "histogram", f"word_map_codes_{codes.level}", *sides, ranks=False)
    name = f"purity_{codes.level}"
    try:
        purity = code_word_purity(sides[1], codes.targets.held_out_words)
    except ValueError as error:
        return results | RunResults(missing={name: str(error)})
    return results | RunResults({name: purity.excess}, chance={name: (0.0, purity.null_spread)})


def grid_scores(codes: LevelCodes) -> RunResults:
    """Retrieval and word mAP of ridges on the code vectors of every place; and retrieval of the unseen text vectors."""
    level, targets = codes.level, codes.targets
    sides = [side.places[codes.position].flatten(1) for side in (codes.train, codes.held_out)]
    probes = _probes(codes, sides[0])
    results = _retrieval_and_words(codes, "grid", f"grid_word_map_{level}", *sides, probes=probes)
    known = targets.held_out_unseen_has_text & codes.has_text
    names = metrics_of_retrieval("unseen", level)
    if targets.train_unseen.shape[1] == 0 or known.sum() < MIN_TEXTS:
        return results | RunResults(missing=dict.fromkeys(names, "too few words occur in several training texts"))
    with probes.named(*names):
        ridge = probes.towards(targets.train_unseen[codes.rows])
        texts = codes.texts_of(targets.held_out_unseen, known)
        results |= retrieval_of_texts(
            "unseen", level, ridge.predict(sides[1][known]), texts, permutations=codes.permutations
        )
    return results | RunResults(missing=probes.missing)


def random_vector_scores(codes: LevelCodes) -> RunResults:
    """The grid probe after each code's vector was replaced by a random one: what the indices alone say."""
    assert codes.indices is not None and codes.size is not None
    width = codes.train.places[codes.position].shape[1]
    table = torch.randn(codes.size, width, generator=torch.Generator().manual_seed(0))
    sides = [
        torch.cat([places_of(rearrange(table[part], "b h w c -> b c h w")).flatten(1) for part in side.split(BATCH)])
        for side in codes.indices
    ]
    return _retrieval_and_words(codes, "random_vectors", f"random_vectors_word_map_{codes.level}", *sides)


def attentive_scores(codes: LevelCodes) -> RunResults:
    """Retrieval and word mAP of one small attentive probe on the code vectors of every place."""
    names = [*metrics_of_retrieval("attentive", codes.level), f"attentive_word_map_{codes.level}"]
    if not codes.targets.settings.attentive:
        return RunResults(missing=dict.fromkeys(names, "the settings leave the attentive probe out"))
    level, places = codes.level, [side.places[codes.position] for side in (codes.train, codes.held_out)]
    probe = fit_attentive(places[0][codes.rows], codes.train_text, codes.train_words)
    if probe.is_constant:
        why = "no step of the attentive probe's fit did better than a constant, on the training rows that stop it"
        return RunResults(missing=dict.fromkeys(names, why))
    predicted = probe.predict(places[1])
    text = predicted.text[codes.has_text].double()
    results = retrieval_of_texts("attentive", level, text, codes.texts, permutations=codes.permutations)
    name = f"attentive_word_map_{level}"
    if not _varies(codes.train_words):
        return results | RunResults(missing={name: "every training text has the same frequent words"})
    words = predicted.words.double()
    return results | word_map(name, words, codes.targets.held_out_words, permutations=codes.permutations)


def box_scores(codes: LevelCodes) -> RunResults:
    """A word in its box, by a ridge on the code vector of each place."""
    name, targets = f"word_in_box_map_{codes.level}", codes.targets
    if not targets.train_boxes:
        return RunResults(missing={name: "the data have no boxes"})
    places = [side.places[codes.position] for side in (codes.train, codes.held_out)]
    if min(places[0].shape[2:]) == 1 < max(places[0].shape[2:]):
        why = "the codes of this level are a sequence, so they have no place in the image"
        return RunResults(missing={name: why})
    try:
        words = word_in_box(
            places[0], targets.train_boxes, places[1], targets.held_out_boxes, boxed_words(targets.train_boxes),
            penalties=targets.settings.penalties, permutations=codes.permutations,
        )  # fmt: skip
    except ValueError as error:
        return RunResults(missing={name: str(error)})
    return RunResults(per_image={name: words.per_image}, chance={name: words.chance})


def transport_recalls(codes: LevelCodes, probe: Ridge | None) -> RunResults:
    """Retrieval both ways by transport and, at level 1, the code–word similarity error."""
    assert codes.indices is not None
    level, targets = codes.level, codes.targets
    images, n = targets.transport_images, len(codes.has_text)
    if probe is None or len(images) < 2:
        names = [f"{way}_ot_r{k}_{level}" for way in ("image_text", "text_image") for k in RECALL_AT]
        names += ["similarity_mse"] if level == 1 else []
        few = f"{len(images)} images take part in retrieval by transport, which needs two"
        return RunResults(
            missing=dict.fromkeys(names, "the pooled probe could not be fitted" if len(images) > 1 else few)
        )
    units, quantized = targets.transport_units[level - 1], codes.held_out.quantized[codes.position]
    texts = HeldOutTexts(images, images, n)
    at = tuple(k for k in RECALL_AT if k < len(images))
    scores = transport_scores(quantized, codes.indices[1][images], units, probe)
    results = RunResults()
    for way, table in (("image_text_ot", scores), ("text_image_ot", scores.T)):
        results |= retrieval_by_scores(way, level, table, texts, at=at, ranks=False, permutations=codes.permutations)
    if level == 1:
        points = rearrange(quantized, "b c h w -> b (h w) c")
        try:
            errors = similarity_errors(points, units, probe)
        except ValueError as error:
            return results | RunResults(missing={"similarity_mse": str(error)})
        own = {"similarity_mse": at_images(errors.own, images, n)}
        results |= RunResults(per_image=own, chance={"similarity_mse": errors.chance})
    return results


def _retrieval_and_words(
    codes: LevelCodes,
    name: str,
    words: str,
    train: Tensor,
    held_out: Tensor,
    *,
    ranks: bool = True,
    probes: FittedProbes | None = None,
) -> RunResults:
    """Retrieval `name_…` and word mAP `words` of ridges on any features; n c, m c."""
    probes, results = probes or _probes(codes, train), RunResults()
    with probes.named(*metrics_of_retrieval(name, codes.level, ranks=ranks)):
        predicted = probes.towards(codes.train_text).predict(held_out[codes.has_text])
        results |= retrieval_of_texts(
            name, codes.level, predicted, codes.texts, ranks=ranks, permutations=codes.permutations
        )
    scores = _word_scores(codes, words, probes, held_out)
    if scores is not None:
        results |= word_map(words, scores, codes.targets.held_out_words, permutations=codes.permutations)
    return results | RunResults(missing=probes.missing)


def _word_scores(codes: LevelCodes, name: str, probes: FittedProbes, held_out: Tensor) -> Tensor | None:
    """Scores of all words for all held-out images; None if no probe can be fitted: `probes.missing` says why."""
    with probes.named(name):
        return probes.towards(codes.train_words.double()).predict(held_out)
    return None


def _retrieval_metrics(level: int) -> list[str]:
    """The retrieval metrics of all probes at one level."""
    ranked, others = ("grid", "attentive", "unseen", "random_vectors"), ("histogram", "image_text", "text_image")
    names = [name for probe in ranked for name in metrics_of_retrieval(probe, level)]
    return names + [name for probe in others for name in metrics_of_retrieval(probe, level, ranks=False)]


def _probes(codes: LevelCodes, features: Tensor) -> FittedProbes:
    return FittedProbes(features[codes.rows], codes.targets.settings.penalties)


def _varies(words: Tensor) -> bool:
    return bool((words.any(0) & ~words.all(0)).any())
