"""Text metrics of one level, from what a probe predicts: each with its chance when texts are dealt at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tavq_plugin.evaluation.metrics.average_precision import WordRanking
from tavq_plugin.evaluation.metrics.permuted_texts import chance_from, permuted_positions
from tavq_plugin.evaluation.metrics.retrieval import (
    centred_cosines,
    own_ranks,
    recall_from_scores,
)
from tavq_plugin.evaluation.probes.ridge import DecomposedFeatures, PenaltyAtEdge, Ridge
from tavq_plugin.evaluation.results import RunResults

RECALL_AT = (1, 5, 10, 50)


@dataclass(frozen=True)
class HeldOutTexts:
    """The held-out images that have a text to be found, and the texts' vectors."""

    images: Tensor  # s positions among the n held-out images
    vectors: Tensor  # s d
    n: int

    def at_images(self, values: Tensor) -> Tensor:
        """One value per held-out image, NaN for images without text; s -> n."""
        return at_images(values, self.images, self.n)


def retrieval_of_texts(
    name: str, level: int, predicted: Tensor, texts: HeldOutTexts, *, permutations: int, ranks: bool = True
) -> RunResults:
    """R@k of each image, and the median rank, by cosine of prediction and text vector, both centred; s d.

    Metrics are `name_r1_level` … and, with `ranks`, `name_median_rank_level`.
    """
    return retrieval_by_scores(
        name, level, centred_cosines(predicted, texts.vectors), texts, permutations=permutations, ranks=ranks
    )


def retrieval_by_scores(
    name: str,
    level: int,
    scores: Tensor,
    texts: HeldOutTexts,
    *,
    permutations: int,
    at: Sequence[int] = RECALL_AT,
    ranks: bool = True,
) -> RunResults:
    """R@k of each query, and the median rank, from scores, where greater is nearer; s s, queries first."""

    def named(table: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        recalls = {f"{name}_{k}_{level}": 100 * recall for k, recall in recall_from_scores(table, at=at).items()}
        median = {f"{name}_median_rank_{level}": own_ranks(table).quantile(0.5).item()} if ranks else {}
        return recalls, median

    per_image, values = named(scores)
    dealt: dict[str, list[float]] = {metric: [] for metric in (*per_image, *values)}
    for order in permuted_positions(len(scores), permutations=permutations):
        recalls, medians = named(scores[:, order])
        for metric, recall in recalls.items():
            dealt[metric].append(recall.mean().item())
        for metric, median in medians.items():
            dealt[metric].append(median)
    return RunResults(
        values,
        {metric: texts.at_images(recall) for metric, recall in per_image.items()},
        chance={metric: chance_from(of_deals) for metric, of_deals in dealt.items()},
    )


def word_map(metric: str, scores: Tensor, present: Tensor, *, permutations: int) -> RunResults:
    """Word mAP of a probe's word scores: each image's part, and chance; n w, n w bool."""
    ranking = WordRanking(scores)
    parts = ranking.average_precision(present)
    if not present.any():
        return RunResults(per_image={metric: parts})
    dealt = [
        ranking.average_precision(present[order]).mean().item()
        for order in permuted_positions(len(present), permutations=permutations)
    ]
    return RunResults(per_image={metric: parts}, chance={metric: chance_from(dealt)})


class NothingToLearnError(ValueError):
    """The targets of a probe are the same for every training image."""


class FittedProbes:
    """Ridge probes on one set of features, fitted when they are asked for; one eigendecomposition serves all.

    A probe that finds no penalty between the edges of the grid gives no metric: `named` then records the reason in
    `missing`, under each metric that it was given.
    """

    def __init__(self, features: Tensor, penalties: Sequence[float]) -> None:
        self.penalties, self.missing = penalties, dict[str, str]()
        self._features = DecomposedFeatures(features)

    def towards(self, targets: Tensor) -> Ridge:
        """The probe towards these targets; n d."""
        if not (targets != targets[:1]).any():
            raise NothingToLearnError(
                "the training texts are all alike, so a probe has nothing to learn: give texts that differ"
            )
        return self._features.choose_ridge(targets, penalties=self.penalties)

    @contextmanager
    def named(self, *metrics: str) -> Iterator[None]:
        """Within this context, a probe that cannot be fitted is recorded as why these metrics are missing."""
        try:
            yield
        except (PenaltyAtEdge, NothingToLearnError) as error:
            self.missing |= dict.fromkeys(metrics, str(error))


def metrics_of_retrieval(name: str, level: int, *, ranks: bool = True) -> list[str]:
    """The metrics that `retrieval_of_texts` gives."""
    return [f"{name}_r{k}_{level}" for k in RECALL_AT] + ([f"{name}_median_rank_{level}"] if ranks else [])


def at_images(values: Tensor, images: Tensor, n: int) -> Tensor:
    """Values of some of n images, NaN for the others; s, s -> n."""
    return torch.full((n,), torch.nan, dtype=torch.float64).index_copy(0, images, values.double())
