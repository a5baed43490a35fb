"""A corpus of a dozen images, tiny hosts and a method with state of its own, for the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from helpers.tiny_hosts import DDCONFIG
from torch import nn

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.io.atomic import save_json, save_tensors
from tavq_plugin.methods import METHODS
from tavq_plugin.methods.base import Method
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import Recipe, TrainedRun, fit
from tavq_plugin.training.recipe_yaml import recipe_of

TINY = {**DDCONFIG, "resolution": 16, "ch_mult": [1, 1, 1], "attn_resolutions": []}
HOST = {
    "target": "tavq_plugin.adapters.taming.VQGAN",
    "params": {"ddconfig": TINY, "n_embed": 32, "embed_dim": 8, "legacy": False},
}
SMALL = {
    "host": HOST, "resolution": 16, "steps": 4, "batch_size": 2, "tracker": "none", "adversarial": {"weight": 0.0},
    "optimizer": {"warmup": 0, "schedule": "constant"},
}  # fmt: skip


class Noisy(Method):
    """Pulls pooled codes to a learned point with noise from its own generator, and counts its calls.

    Step `broken_at` gives NaN. While the file `interrupt` exists, the fourth step removes it and raises Ctrl-C's error.
    """

    name = "noisy"
    levels = True

    def __init__(
        self, tokenizer: Any, corpus: Corpus, *, seed: int = 0, broken_at: int = -1, interrupt: str = ""
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        self.point = nn.Parameter(torch.randn(tokenizer.code_width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.draw = torch.Generator().manual_seed(seed)
        self.broken_at, self.interrupt = broken_at, interrupt
        self.calls, self.finished = 0, False

    def get_extra_state(self) -> dict[str, Any]:
        return {"draw": self.draw.get_state(), "calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        self.draw.set_state(state["draw"])

    def forward(self, step):
        self.calls += 1
        pooled = torch.stack([level.quantized.mean((2, 3)) for level in step.codes.levels])
        noise = 1 + 0.1 * torch.rand(len(self.point), generator=self.draw)
        value = F.mse_loss(pooled, (self.point * noise).expand_as(pooled))
        if step.number == 3 and self.interrupt and Path(self.interrupt).exists():
            Path(self.interrupt).unlink()
            raise KeyboardInterrupt
        if step.number == self.broken_at:
            value = value * float("nan")
        return {"pull": 0.1 * value * step.texts["word"].mask.any().float()}

    def after_update(self, step):
        self.updates += 1

    def finish(self):
        self.finished = True


@contextmanager
def registered() -> Iterator[None]:
    """`Noisy` among the methods, for the length of a block."""
    METHODS["noisy"] = "helpers.toy_corpus:Noisy"
    try:
        yield
    finally:
        del METHODS["noisy"]


class Letters:
    """A text encoder by the letters' numbers."""

    dim, fingerprint = 6, "letters"

    class stats:
        split = 0

    def encode(self, texts, progress=None):
        return torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts])


def corpus(n: int = 10, n_train: int = 8, side: int = 16) -> Corpus:
    """n random images with texts, the first n_train for training."""
    images = torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texts = [f"a red circle beside {i} blue squares" for i in range(n)]
    return Corpus("toy", images, texts, TextStore.build(texts, Letters(), centre_on=range(n_train)), n_train)


def save_as_scenes(corpus: Corpus, folder: Path, *, n_test: int = 0) -> None:
    """Write a corpus where `load_or_build_corpus` keeps drawn scenes, so that a command encodes nothing.

    Its last `n_test` rows become the test split, the other held-out rows the tune split.
    """
    n_eval, side = len(corpus.held_out_rows) - n_test, corpus.images.shape[-1]
    asked = {"data": "scenes", "resolution": side, "n_train_at_most": corpus.n_train, "n_eval_at_most": n_eval}
    protocol = {"n_train": corpus.n_train, "n_eval": n_eval, "n_test": n_test}
    save_tensors({"images": corpus.images[: corpus.n_train + n_eval]}, folder / "images.safetensors")
    save_tensors({"images": corpus.images[corpus.n_train + n_eval :]}, folder / "test.safetensors")
    corpus.store.save(folder / "store.safetensors")
    save_json(folder / "corpus.json", {"asked": asked, "texts": list(corpus.texts), "protocol": protocol})


def recipe(**changes: Any) -> Recipe:
    """The small recipe, changed."""
    return recipe_of({**SMALL, **changes})


def stopped(method: str, recipe: Recipe, folder: Path, *, after: int, **settings: Any) -> None:
    """Train and be interrupted after some steps."""

    def stop(done: int, row: dict[str, float]) -> None:
        if done == after:
            raise KeyboardInterrupt

    try:
        fit(method, recipe, corpus(), folder, progress=stop, **settings)
    except KeyboardInterrupt:
        return
    raise AssertionError(f"{recipe.steps} steps ended before {after}")


def weights(fitted: TrainedRun) -> dict[str, torch.Tensor]:
    """Everything learned, by name."""
    named = {f"tokenizer.{name}": value for name, value in fitted.tokenizer.state_dict().items()}
    return named | {f"method.{name}": value.detach() for name, value in fitted.method.named_parameters()}


class Averaged(nn.Module):
    """An autoencoder whose codebook an EMA moves, in buffers; b 3 h w -> (b 3 h w, loss)."""

    def __init__(self) -> None:
        super().__init__()
        from helpers.tiny_hosts import Autoencoder
        from vector_quantize_pytorch import VectorQuantize

        self.inner = Autoencoder(VectorQuantize(dim=8, codebook_size=32), tokens=True)

    def decode(self, z_q):
        return self.inner.decode(z_q)

    def forward(self, images):
        return self.inner(images)


AVERAGED = {
    "target": "helpers.toy_corpus.Averaged",
    "wrap": {"codebook": "own", "codebook_size": 16, "grad_to": "encoder"},
}


class Tableless(Averaged):
    """The same with a codebook that is computed, not a table."""

    def __init__(self) -> None:
        super().__init__()
        from vector_quantize_pytorch import SimVQ

        self.inner.vq, self.inner.tokens = SimVQ(dim=8, codebook_size=32, channel_first=True), False


class Odd(nn.Module):
    """An autoencoder whose decoder is held twice, whose weights may be channels_last, and whose state may be odd."""

    def __init__(self, *, twice: bool = False, channels_last: bool = False, extra: str = "", complex: bool = False):
        super().__init__()
        from helpers.tiny_hosts import Autoencoder
        from vector_quantize_pytorch import VectorQuantize

        self.inner = Autoencoder(VectorQuantize(dim=8, codebook_size=32, ema_update=False, learnable_codebook=True))
        self.inner.vq.accept_image_fmap = True
        if twice:
            self.again = self.inner.up
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if complex:
            self.register_buffer("phases", torch.zeros(2, dtype=torch.complex128))
        self.extra = extra

    def decode(self, z_q):
        return self.inner.decode(z_q)

    def forward(self, images):
        return self.inner(images)


class WithExtra(Odd):
    """One whose state dict holds a string."""

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class Blind(Odd):
    """One whose encoder gets a gradient of exactly 0 from the host's own losses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner.to_codes = nn.Sequential(ZeroGradient(), self.inner.to_codes)


class ZeroGradient(nn.Module):
    """The same values, through which the gradient is 0."""

    def forward(self, x):
        return x.detach() + 0 * x
