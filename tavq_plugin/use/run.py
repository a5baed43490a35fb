"""`load` and `Run`: one object for a finished run of `tavq train`, `compare` or `demo`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from tavq_plugin.data.corpus import Corpus, ReadSplits
from tavq_plugin.data.images import read_image
from tavq_plugin.data.splits import Split
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun
from tavq_plugin.hosts.summary import logger
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.tasks.trained_heads import trained_heads
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.use.find_run import find_run
from tavq_plugin.use.fingerprint import tokenizer_fingerprint
from tavq_plugin.use.ground import Grounding, ground_text
from tavq_plugin.use.held_out_words import RunWords, WordOfCode, run_words
from tavq_plugin.use.hub_folder import saved_means, write_hub_folder
from tavq_plugin.use.model_card import model_card
from tavq_plugin.use.run_data import HeldOut, corpus_of_run, held_out, read_data, text_means
from tavq_plugin.use.run_metrics import run_metrics

OFFLINE = (
    "the hub could not be reached or did not let us in ({error}): log in (hf auth login) on a machine with a network, "
    "without HF_HUB_OFFLINE; or write the folder here (run.save_pretrained(FOLDER), tavq export RUN --out FOLDER) and "
    "upload it from there: hf upload {repo} FOLDER"
)


def load(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    encoder: Any = None,
    device: torch.device | str | None = None,
    allow: Sequence[str] = (),
    tell: Callable[[str], None] = logger.info,
) -> Run:
    """A finished run of `tavq train`, `compare` or `demo`, or a folder of `Run.save_pretrained`.

    Nothing in the folder is changed.

    Args:
        folder: The folder of one run.
        data: Images with texts, where the run's own are not at hand. Default: those that it was trained on.
        encoder: Encodes texts, as the one that the run was trained with. Default: the offline encoder, on first use.
        device: Where the tokenizer runs. Default: a GPU if there is one.
        allow: Packages, besides those known, whose classes the run's recipe may name.
        tell: Called with what a user should know, such as images that are left out.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file.
        ValueError: The folder is none of a run, of several, of one that is not finished, of a newer release, or
            damaged.
    """
    source = find_run(Path(folder), allow=allow)
    tokenizer = source.load().tokenizer
    try:
        align = trained_heads(source, tokenizer)
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {source.folder} cannot be read ({error}): a file was damaged; train or export it again"
        ) from error
    if device is not None:
        tokenizer, align = tokenizer.to(device), None if align is None else align.to(device)
    return Run(source, tokenizer, align, data=None if data is None else Path(data), encoder=encoder, tell=tell)


class Run(
    ModelHubMixin,
    library_name="tavq-plugin",
    tags=["tavq-plugin", "image-tokenizer", "vector-quantization"],
    paper_url="https://arxiv.org/abs/2503.01261",
):
    """A finished run: its tokenizer and heads, its words, and what it can be published as. Levels are counted from 1.

    Attributes:
        tokenizer: The trained tokenizer, in eval mode.
        align: The heads that were trained with it; None for a run without any.
        data: The folder of images with texts that the user gave; None for the run's own.
    """

    def __init__(
        self,
        source: FinishedRun,
        tokenizer: Tokenizer,
        align: TextAlignment | None,
        *,
        data: Path | None = None,
        encoder: Any = None,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self.source, self.tokenizer, self.align = source, tokenizer, align
        self.data, self._encoder, self._tell = data, encoder, tell
        self._words: list[RunWords] | None = None
        self._splits: tuple[Path | None, tuple[ReadSplits, str]] | None = None  # by the data that they were read from

    def __repr__(self) -> str:
        heads = "with" if self.align is not None else "without"
        return f"Run({str(self.folder)!r}: {self.name}, seed {self.seed}, {self.recipe.resolution} px, {heads} heads)"

    @property
    def name(self) -> str:
        """Name of the method, or of the demo's run."""
        return self.source.name

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.source.seed

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self.source.folder

    @property
    def recipe(self) -> Recipe:
        """All settings of the training but its data."""
        return self.source.recipe

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """What was measured on held-out images, with chance where it is known; {} for a run that nobody measured."""
        return run_metrics(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer's weights, which is stored with its tokens."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def encoder(self) -> Any:
        """Encodes texts, as in the run's training."""
        if self._encoder is None:
            from tavq_plugin.text.encoder import offline_encoder

            self._encoder = offline_encoder()
        return self._encoder

    @cached_property
    def text_means(self) -> Mapping[str, Tensor]:
        """The mean of the training texts' units, by granularity; the heads expect it to be subtracted.

        Raises as `corpus`.
        """
        return saved_means(self.folder) or text_means(
            self.source, self.data, self.encoder, tell=self._tell, read=self._read
        )

    def corpus(self, data: str | Path | None = None, *, split: Split = "tune") -> Corpus:
        """The data that the run was trained on, with encoded texts and the held-out rows of one split.

        Args:
            data: Images with texts. Default: those given to `load`, else the run's own.
            split: The held-out images: "tune" or "test".

        Raises:
            FileNotFoundError: The run's data are not at hand, and none are given.
            ValueError: The folder that is given has too few images, or no text.
        """
        given = self.data if data is None else Path(data)
        return corpus_of_run(self.source, given, self.encoder, split=split, tell=self._tell)

    def held_out(self) -> HeldOut:
        """The images and texts of the tune split, which the run was not trained on. Raises as `corpus`."""
        return held_out(self.source, self.data, tell=self._tell, read=self._read)

    def _read(self) -> tuple[ReadSplits, str]:
        """The splits of the data, read once: scenes take seconds to draw."""
        if self._splits is None or self._splits[0] != self.data:
            self._splits = (self.data, read_data(self.source, self.data, self._tell))
        return self._splits[1]

    def words(self, code: int, level: int = 1, top: int = 10) -> list[WordOfCode]:
        """The words that the texts of a code's held-out images hold more often than by chance, best first.

        The evidence is pointwise mutual information, beside what remains of it after the texts are dealt to other
        images. It is computed for all codes on the first call.

        Raises ValueError for a level or code that does not exist, and as `corpus`.
        """
        return self.level_words(level).of_code(code, top)

    def codes(self, word: str, level: int = 1, top: int = 10) -> list[WordOfCode]:
        """The codes whose held-out images have the word more often than by chance, best first; as `words`."""
        return self.level_words(level).of_word(word, top)

    def level_words(self, level: int) -> RunWords:
        """The evidence for every code and word of a level. ValueError for a level that does not exist."""
        if self._words is None:
            images, texts, _ = self.held_out()
            self._words = run_words(self.tokenizer, images, texts)
        if not 1 <= level <= len(self._words):
            raise ValueError(f"there is no level {level}: give 1 to {len(self._words)}; 1 is the finest")
        return self._words[level - 1]

    def image(self, image: str | Path | bytes | Image.Image | Tensor) -> Tensor:
        """An image as the run takes it, 3 r r uint8: its shorter side resized and its centre cropped, as in training.

        Raises ValueError for what is no image, or a tensor that is not 3 h w uint8.
        """
        side = self.recipe.resolution
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(
                    f"the image is {tuple(image.shape)} {image.dtype}: give 3 h w uint8, or the path of a file"
                )
            if image.shape[1:] == (side, side):
                return image
            image = Image.fromarray(rearrange(image, "c h w -> h w c").cpu().numpy())
        return read_image(image, side)

    def ground(self, image: str | Path | bytes | Image.Image | Tensor, text: str) -> Grounding:
        """Where the transport plans of the run's heads place each word, phrase and sentence of a text in an image.

        Args:
            image: The path or bytes of an image file, an image of Pillow, or 3 h w uint8; sized as `image` says.
            text: In English.

        Raises ValueError if the run has no heads or the text no words, and as `corpus`.
        """
        if self.align is None:
            raise ValueError(
                f"{self.folder} has no heads of an alignment (method {self.recipe.method}), which place a text in an "
                "image: give a run of tavq or one of its controls"
            )
        picture = self.image(image)
        return ground_text(self.tokenizer, self.align, picture, text, encoder=self.encoder, means=self.text_means)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README of a published run. `licence`: its licence, as the hub names it. Default: to be filled in."""
        return model_card(self.source, self.metrics, self.tokenizer, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json, host.safetensors and tavq.safetensors; called by `save_pretrained`."""
        means = None if self.align is None else self.text_means
        write_hub_folder(save_directory, self.source, self.tokenizer, self.align, means, self.metrics, self.fingerprint)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **given: Any) -> Run:
        """A run from a folder of `save_pretrained`, or from the hub; called by `from_pretrained`."""
        where = {name: given.pop(name) for name in (*_OF_DOWNLOAD, "config") if name in given}
        where.pop("config", None)
        if Path(model_id).is_dir():
            return load(model_id, **given)
        return load(snapshot_download(model_id, allow_patterns=["*.safetensors", "config.json"], **where), **given)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:  # type: ignore[override]
        """Publish the run on the hub; the arguments are those of huggingface_hub's `ModelHubMixin.push_to_hub`.

        Raises OSError, with what to do, if the hub cannot be reached or does not accept the run.
        """
        try:
            return super().push_to_hub(repo_id, **settings)
        except Exception as error:
            if not (isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in _OF_THE_HUB):
                raise
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OSError(OFFLINE.format(error=line, repo=repo_id)) from error


_OF_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")
_OF_THE_HUB = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests")  # packages whose errors are its own
