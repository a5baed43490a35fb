"""What a task is given, what it gives back, and what all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.tokens import CodeSequences
from tavq_plugin.text.encoder import TextEncoder

OF_CODES = "codes"  # the condition that a task is about; every other condition is a control


@dataclass(frozen=True)
class ModelSettings:
    """The transformer of a task; the same for all runs and controls."""

    width: int = 128  #: channels
    layers: int = 4
    heads: int = 4
    embedding: str = "codebook"  #: "codebook", a linear map of each code's vector, or "indices", one learnt row each


@dataclass(frozen=True)
class TaskSettings:
    """What a task's models are and how they are trained."""

    model: ModelSettings = field(default_factory=ModelSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    quick: bool = False  #: few steps, to see that everything works
    sampling: SamplingSettings = field(default_factory=SamplingSettings)  #: of the tasks that generate images


@dataclass(frozen=True)
class EncodedRun:
    """A trained tokenizer, and the tokens that it makes of the images."""

    name: str
    seed: int
    tokenizer: Tokenizer
    align: TextAlignment | None  #: the heads that were trained with it; None for a run without any
    train: CodeSequences
    held_out: CodeSequences


@dataclass(frozen=True)
class Condition:
    """The scores of one condition: the codes themselves, or a control."""

    values: Mapping[str, float]  #: metric → mean over the held-out images
    per_image: Mapping[str, Tensor] = field(default_factory=dict)  #: metric → n, NaN where an image has none


@dataclass(frozen=True)
class Sample:
    """One row of the samples that the page shows side by side for all runs."""

    given: str  #: what the model was given: a text, a question, "" for nothing
    images: Sequence[Tensor] = ()  #: each 3 r r uint8
    text: str = ""  #: what the model wrote
    truth: str = ""  #: the true text, if there is one


@dataclass(frozen=True)
class TaskResult:
    """What a task found for one run."""

    conditions: Mapping[str, Condition]  #: `OF_CODES`, then each control by its name in plain words
    missing: Mapping[str, str] = field(default_factory=dict)  #: metric → why it is not computed
    samples: Sequence[Sample] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)  #: numbers of images, steps, parameters, and so on


@dataclass(frozen=True)
class Workplace:
    """Where a task keeps its models, and how it reports progress."""

    own: Path  #: folder for models on this run's codes
    shared: Path  #: folder for models that read no codes, such as the upper bound from pixels: one for all runs
    encoder: TextEncoder  #: frozen text encoder, for tasks that read text
    progress: Callable[[str, int, int], None] = lambda name, done, total: None
    weights: Path | None = None  #: folder with weights of judging networks, for the metrics that need them


class Task(Protocol):
    """One task; a module of this package defines one class for each."""

    name: ClassVar[str]  #: as on the command line
    main_metric: ClassVar[str]  #: the metric that the table shows first; larger is better unless `smaller_is_better`
    smaller_is_better: ClassVar[bool]

    def unfit(self, data: TaskData) -> str:
        """Why these data cannot serve this task, with the mend; "" if they can."""

    def settings(self, *, quick: bool) -> TaskSettings:
        """The task's own default settings."""

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train the task's models on the run's codes and on its controls, and measure them on the held-out images."""
