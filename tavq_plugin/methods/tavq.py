"""TA-VQ: codes of three levels aligned with words, phrases and sentences by optimal transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.gradient_scale import half_cosine, scale_gradient
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.base import Method, Step, drawn_from
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES, GradTo, TextBatch

WEIGHT = 0.2  # λ at the start; 0.3 costs half again as much PSNR, for half a point of word mAP (docs/findings.md)
LEVEL_WEIGHTS = (2.5, 2.5, 0.35)  # words, phrases, sentences; levels 1-2 cost less, as the decoder reads only level 3
CONTRAST = 0.1  # tells images apart and costs less PSNR than more transport would


class TAVQ(Method):
    """TA-VQ (arXiv 2503.01261, sampling-based alignment): λ · Σ over levels of weight · transport of codes onto units.

    From the paper: levels are aligned with the words, phrases and sentences of a long text by optimal transport between
    the text and the codes, which are modelled as a density (Theorem 1). The paper's code is not public, so the rest is
    our reading. The host learns through the added levels. The gradient that reaches the tokenizer is multiplied by λ,
    which falls along half a cosine from `weight` to `weight_end`; the alignment's heads always learn with weight 1.

    Args:
        weight: λ at the start; 0 sends no gradient to the tokenizer.
        weight_end: λ at the end, at most `weight`.
        every: Steps from one alignment to the next; the gradient is then multiplied by `every` (lazy regularisation,
            Karras et al. 2020, appendix B).
        level_weights: One weight per level, fine → coarse.
        granularities: The text units that each level is aligned with, fine → coarse.
        grad_to: Where the gradient goes: "encoder", "codebook" or "both". None: as the tokenizer was wrapped.
        distribution: "all" transports every code; "gaussian" transports samples of a density, as we read the paper;
            "subsample" transports the codes of some places.
        samples: Points per level for "gaussian" and "subsample".
        solver: Transport solver: "newton", "sinkhorn" or "emd".
        epsilon: Entropic blur, as a share of the problem's own cost scale.
        projection: Head that brings codes to the text's width: "mlp" or "linear".
        hidden: Width inside an "mlp" head. None: the text's width.
        contrast: Weight of a contrast over the batch, added to the transport; 0 leaves it out.
        contrast_on: What is contrasted: "pooled" vectors or "transport" costs.
        temperature: Temperature of the contrast.

    Raises:
        ValueError: A setting is out of its range, or the host cannot have this `grad_to`.
    """

    name = "tavq"
    levels = True
    alignment: ClassVar[type[TextAlignment]] = TextAlignment  # controls replace it

    @renamed_arguments(level_weight="level_weights")
    def __init__(
        self,
        tokenizer: Tokenizer,
        corpus: Corpus,
        *,
        seed: int = 0,
        weight: float = WEIGHT,
        weight_end: float = 0.0,
        every: int = 1,
        level_weights: Sequence[float] = LEVEL_WEIGHTS,
        granularities: Sequence[str] = GRANULARITIES,
        grad_to: GradTo | None = None,
        distribution: str = "all",
        samples: int = 128,
        solver: str = "newton",
        epsilon: float = 0.02,
        projection: str = "mlp",
        hidden: int | None = None,
        contrast: float = CONTRAST,
        contrast_on: str = "pooled",
        temperature: float = 0.1,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        for name, value in (("weight", weight), ("weight_end", weight_end)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.weight, self.weight_end, self.every = weight, weight_end, every
        if grad_to is not None:
            tokenizer.send_gradient(grad_to)
        settings: dict[str, Any] = dict(levels=granularities, level_weights=level_weights, projection=projection)
        settings |= dict(distribution=distribution, samples=samples, hidden=hidden)
        settings |= dict(contrast=contrast, contrast_on=contrast_on, temperature=temperature)
        settings |= dict(transport=TransportSettings(solver=solver, epsilon=epsilon))
        with drawn_from(seed):
            self.align = self.alignment(tokenizer, corpus.store.dim, **settings)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The alignment loss of all levels, a scalar; empty in the steps between alignments."""
        if (step.number - step.first) % self.every != self.every - 1:
            return {}
        codes = scale_gradient(step.codes, self.every * self.weight_at(step))
        return {"alignment": self.align(codes, self.texts(step))}

    def weight_at(self, step: Step) -> float:
        """λ at a step: half a cosine over the steps with codes; always 0 if `weight` is 0."""
        end = min(self.weight, self.weight_end)
        done = (step.number - step.first) / max(1, step.steps - step.first)
        return end + (self.weight - end) * half_cosine(done)

    def texts(self, step: Step) -> TextBatch:
        """The units that the codes are aligned with; a control may return others."""
        return step.texts
