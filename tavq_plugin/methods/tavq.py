"""TA-VQ: codes of three levels aligned with words, phrases and sentences by optimal transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.alignment_settings import AlignmentSettings, Balance
from tavq_plugin.losses.alignment_term import alignment_term
from tavq_plugin.losses.gradient_injection import GradientFigures
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.base import Method, Step, drawn_from
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GradTo, TextBatch

DEFAULTS = AlignmentSettings()


class TAVQ(Method):
    """TA-VQ (arXiv 2503.01261, sampling-based alignment): λ · Σ over levels of weight · transport of codes onto units.

    From the paper: levels are aligned with the words, phrases and sentences of a long text by optimal transport between
    the text and the codes, which are modelled as a density (Theorem 1). The paper's code is not public, so the rest is
    our reading. The host learns through the added levels. The gradient that reaches the tokenizer is `balance` times as
    large as the host's own at each tap, the latent and the codebook, without the part that opposes it, and the added
    levels' own loss trains their projections only. With balance=None or a `weight`, it is instead multiplied by λ,
    which falls along half a cosine from `weight` to `weight_end`. The alignment's heads always learn in full.

    Args:
        weight: λ at the start, of a weighted sum; 0 sends no gradient to the tokenizer. None: .2 with balance=None.
        weight_end: λ at the end, at most `weight`.
        balance: ρ at the start, one value or one per level; it falls to 0. None: a weighted sum, by λ. "auto": that of
            `AlignmentSettings` unless a weight is given.
        rise: Share of the run over which λ and ρ rise from 0; for heads that are new beside a trained host.
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
        contrast: Weight of a contrast over the batch, added to the transport; 0 leaves it out. None: that of
            `AlignmentSettings`, 1 with a balance and .1 in a weighted sum.
        contrast_on: What is contrasted: "pooled" vectors or "transport" costs.
        temperature: Temperature of the contrast.

    Raises:
        ValueError: A setting is out of its range, or the host cannot have this `grad_to`.
    """

    name = "tavq"
    levels = True
    weighed_by = ("balance", "weight")
    alignment: ClassVar[type[TextAlignment]] = TextAlignment  # controls replace it
    auto_balance: ClassVar[Balance] = "auto"  # what balance="auto" means

    @renamed_arguments(level_weight="level_weights")
    def __init__(
        self,
        tokenizer: Tokenizer,
        corpus: Corpus,
        *,
        seed: int = 0,
        weight: float | None = None,
        weight_end: float = DEFAULTS.weight_end,
        balance: Balance = "auto",
        rise: float = DEFAULTS.rise,
        every: int = 1,
        level_weights: Sequence[float] = DEFAULTS.level_weights,
        granularities: Sequence[str] = DEFAULTS.levels,
        grad_to: GradTo | None = None,
        distribution: str = DEFAULTS.distribution,
        samples: int = DEFAULTS.samples,
        solver: str = DEFAULTS.transport.solver,
        epsilon: float = DEFAULTS.transport.epsilon,
        projection: str = DEFAULTS.projection,
        hidden: int | None = DEFAULTS.hidden,
        contrast: float | None = None,
        contrast_on: str = DEFAULTS.contrast_on,
        temperature: float = DEFAULTS.temperature,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.settings = AlignmentSettings(
            weight=weight,
            weight_end=weight_end,
            balance=self.auto_balance if balance == "auto" else balance,
            rise=rise,
            levels=granularities,
            level_weights=level_weights,
            projection=projection,
            hidden=hidden,
            distribution=distribution,
            samples=samples,
            transport=TransportSettings(solver=solver, epsilon=epsilon),
            contrast=contrast,
            contrast_on=contrast_on,
            temperature=temperature,
        )
        if grad_to is not None:
            tokenizer.send_gradient(grad_to)
        tokenizer.on_copies = self.settings.is_balanced
        self.figures = GradientFigures()
        self._hierarchy = (tokenizer.hierarchy,)  # in a tuple, so that it is not a submodule
        with drawn_from(seed):
            self.align = self.alignment(tokenizer, corpus.store.dim, **self.settings.head_settings())
        self.prepare(corpus, seed)

    @classmethod
    def resolved_options(cls, options: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options with `balance` as a number, one per level, or None."""
        asked = options.get("balance", "auto")
        if asked == "auto":
            asked = cls.auto_balance
            if options.get("weight") is None and saved is not None:
                asked = saved.get("balance", asked)
        weight, levels = options.get("weight"), options.get("granularities", DEFAULTS.levels)
        balance = AlignmentSettings(weight=weight, balance=asked, levels=levels).balance
        return {**options, "balance": list(balance) if isinstance(balance, tuple) else balance}

    @classmethod
    def at_strength(cls, strength: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with ρ, or in a weighted sum λ, multiplied by `strength`."""
        resolved = cls.resolved_options(options)
        balance = resolved["balance"]
        if balance is None:
            start = AlignmentSettings(weight=resolved.get("weight"), balance=None).weight
            weights = {"weight": start or 0.0, "weight_end": resolved.get("weight_end", DEFAULTS.weight_end)}
            return {**resolved, **{name: strength * weight for name, weight in weights.items()}}
        several = isinstance(balance, list)
        return {**resolved, "balance": [strength * ratio for ratio in balance] if several else strength * balance}

    def prepare(self, corpus: Corpus, seed: int) -> None:
        """Called once, at the end of the constructor; a control prepares its texts here."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The alignment loss of all levels, a scalar; empty in the steps between alignments."""
        if (step.number - step.first) % self.every != self.every - 1:
            return {}
        value = alignment_term(
            self.align,
            step.codes,
            self.texts(step),
            settings=self.settings,
            progress=self.progress(step),
            parameters=[*self.align.parameters(), *self._hierarchy[0].parameters()],
            figures=self.figures,
            every=self.every,
        )
        return {"alignment": value}

    def weight_at(self, step: Step) -> float:
        """λ at a step: half a cosine over the steps with codes; always 0 if `weight` is 0."""
        return self.settings.weight_at(self.progress(step))

    @staticmethod
    def progress(step: Step) -> float:
        """Share of the steps with codes that is done."""
        return (step.number - step.first) / max(1, step.steps - step.first)

    def texts(self, step: Step) -> TextBatch:
        """The units that the codes are aligned with; a control may return others."""
        return step.texts
