"""`tavq demo`: one tokenizer trained three times from one seed, without alignment, with it, with shuffled texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from tavq_plugin.align.loss import TextAlignment
from tavq_plugin.attach import Tokenizer, wrap
from tavq_plugin.baselines.tavq import CONTRAST, LEVEL_WEIGHT
from tavq_plugin.baselines.tavq_shuffled import one_cycle
from tavq_plugin.contract import TextBatch
from tavq_plugin.data.images import load_images, to_float
from tavq_plugin.data.pack import Pack
from tavq_plugin.data.scenes import scenes
from tavq_plugin.evaluate import Encoded, TextTargets, encode, score, text_targets
from tavq_plugin.metrics.alignment import PENALTY
from tavq_plugin.report.pictures import reconstruction_grid, word_regions
from tavq_plugin.runs import load_metrics, load_run, save_json, save_run, writable
from tavq_plugin.settings import Training
from tavq_plugin.text.embed import TextEncoder, offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.train import train
from tavq_plugin.training.host import small_vqgan

SCENES_WEIGHT = 0.03  # λ on drawn scenes: in their 200 steps with codes, .1 cost .36 dB (32 px, seed 0)
SCENES = 2000  # that train
RUNS = ("baseline", "tavq", "shuffled")


@dataclass(frozen=True)
class Pairs:
    """Images and texts; rows 0..n_train-1 train, the rest is held out."""

    name: str
    images: Tensor  # n 3 r r uint8
    texts: list[str]
    n_train: int

    @property
    def train_rows(self) -> range:
        """Rows that train."""
        return range(self.n_train)

    @property
    def held_out_rows(self) -> range:
        """Rows that are held out."""
        return range(self.n_train, len(self.images))


def load_pairs(data: Path | None, resolution: int, *, n_train: int, n_eval: int, console: Console) -> Pairs:
    """Scenes where `data` is None, else the folder's images and texts; both splits in one table."""
    if data is None:
        images, texts, _ = scenes(n_train + n_eval, seed=0, resolution=resolution)
        return Pairs("scenes", images, list(texts), n_train)
    pack = Pack.read(data)
    taught, held_out = pack.split(n_train=n_train, n_eval=n_eval)
    records = [*taught, *held_out]
    images = load_images([record.image for record in records], resolution)
    empty = sum(not record.text.strip() for record in records)
    if empty:
        console.print(f"{empty} of {len(records)} images have no text: kept, with zero alignment")
    return Pairs(str(data), images, [record.text for record in records], len(taught))


def run_demo(
    *,
    data: Path | None,
    resolution: int,
    out: Path,
    training: Training,
    n_train: int,
    n_eval: int,
    console: Console,
) -> dict[str, Any]:
    """Train, evaluate and draw; what was finished with the same settings is kept. Returns what `demo.json` holds."""
    writable(out)
    encoder = offline_encoder()
    pairs = load_pairs(data, resolution, n_train=n_train, n_eval=n_eval, console=console)
    store = TextStore.build(pairs.texts, encoder, centre_on=pairs.train_rows)
    targets = text_targets(store, pairs.train_rows, pairs.held_out_rows)
    protocol = _protocol(pairs, resolution, training, encoder)
    content: dict[str, Any] = {"protocol": protocol, "runs": {}}
    shown: dict[str, tuple[Tokenizer, TextAlignment | None]] = {}
    for name in RUNS:
        tokenizer, align, metrics = _one_run(name, pairs, store, targets, protocol, training, out / name, console)
        shown[name] = tokenizer, align
        content["runs"][name] = metrics
        save_json(out / "demo.json", content)
    _draw(shown, pairs, store, out)
    return content


def build(resolution: int, seed: int, text_dim: int) -> tuple[Tokenizer, TextAlignment]:
    """The wrapped host and the alignment of a run, the same for every run of a seed."""
    torch.manual_seed(seed)
    tokenizer = wrap(small_vqgan(resolution), max_grid=max(16, resolution // 2))
    return tokenizer, TextAlignment(tokenizer, text_dim, **_alignment(resolution))


def _alignment(resolution: int) -> dict[str, Any]:
    """The alignment's settings; below 64 px the host is light, so the heads are too."""
    return {"level_weight": list(LEVEL_WEIGHT), "contrast": CONTRAST, "hidden": None if resolution >= 64 else 128}


def _one_run(
    name: str,
    pairs: Pairs,
    store: TextStore,
    targets: TextTargets,
    protocol: dict[str, Any],
    training: Training,
    folder: Path,
    console: Console,
) -> tuple[Tokenizer, TextAlignment | None, dict[str, Any]]:
    settings = {"run": name, **protocol}
    tokenizer, align = build(pairs.images.shape[-1], training.seed, store.dim)
    if name == "baseline":
        align = None
    metrics = load_metrics(folder, settings)
    if metrics is not None:
        console.print(f"{name}: kept from {folder}, finished with these settings")
        load_run(folder, tokenizer, align)
        return tokenizer, align, metrics
    texts = _texts(store, pairs, shuffled=name == "shuffled", seed=training.seed)
    with _progress(console) as progress:
        task = progress.add_task(f"{name:9}", total=training.steps)
        trained = train(
            tokenizer, align, pairs.images[: pairs.n_train], texts, training,
            each=lambda step: progress.update(task, completed=step + 1),
        )  # fmt: skip
    encoded = _encoded(tokenizer, align, pairs, store)
    metrics = score(*encoded, targets, codebook_size=len(tokenizer.adapter.codebook()))
    metrics |= {"seconds_per_step": trained.seconds_per_step, "plugin_share": trained.plugin_share}
    save_run(folder, tokenizer, align, settings, metrics | {"history": trained.history})
    return tokenizer, align, metrics


def _texts(store: TextStore, pairs: Pairs, *, shuffled: bool, seed: int) -> Callable[[Sequence[int]], TextBatch]:
    """Rows of images to the units of their texts, or of another image's text, the same one throughout."""
    if not shuffled:
        return store.batch
    other = one_cycle(pairs.train_rows, seed)
    return lambda rows: store.batch([other[row] for row in rows])


def _encoded(
    tokenizer: Tokenizer, align: TextAlignment | None, pairs: Pairs, store: TextStore
) -> tuple[Encoded, Encoded]:
    size = 50
    held_out = list(pairs.held_out_rows)
    texts = [store.batch(held_out[i : i + size]) for i in range(0, len(held_out), size)]
    return (
        encode(tokenizer, pairs.images[: pairs.n_train], batch_size=size),
        encode(
            tokenizer, pairs.images[pairs.n_train :], align=align, texts=texts, reconstruct=True, batch_size=size
        ),
    )  # fmt: skip


def _protocol(pairs: Pairs, resolution: int, training: Training, encoder: TextEncoder) -> dict[str, Any]:
    packages = ("tavq-plugin", "torch", "transformers", "taming-transformers-rom1504", "torchmetrics")
    return {
        **asdict(training),
        "data": pairs.name,
        "n_train": pairs.n_train,
        "n_eval": len(pairs.held_out_rows),
        "resolution": resolution,
        "alignment": _alignment(resolution),
        "encoder": encoder.fingerprint,
        "probe": f"ridge on standardised mean-pooled quantized codes, penalty {PENALTY:g}, fitted on training rows",
        "retrieval": "image→text among the held-out pairs, percent; mean unit embedding, both sides centred",
        "word_map": "mean average precision over the 100 most frequent words of the training texts, percent",
        "psnr": "dB a held-out image, clamped and rounded to 8 bit, mean; 512-code level that the decoder reads",
        "spread": "one seed a call: run --seed 0, 1, 2 for a spread over seeds; psnr_standard_error is over images",
        "chance": {f"r{k}": min(100.0, 100 * k / len(pairs.held_out_rows)) for k in (1, 10, 50)},
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


@torch.no_grad()
def _draw(shown: dict[str, tuple[Tokenizer, TextAlignment | None]], pairs: Pairs, store: TextStore, out: Path) -> None:
    rows = list(pairs.held_out_rows)[:8]
    images = to_float(pairs.images[rows])
    grid = {"image": images}
    for name, (tokenizer, _) in shown.items():
        tokenizer.eval()
        grid[name] = tokenizer.decode(tokenizer.encode(images))
    reconstruction_grid(grid, out / "reconstructions.png")

    tokenizer, align = shown["tavq"]
    rows, images = rows[:4], images[:4]
    fine = tokenizer.encode(images).levels[0].quantized
    plan = align.match(fine, store.batch(rows)[align.levels[0]], 0).plan()
    words, maps = [], []
    for i, row in enumerate(rows):
        mass = rearrange(plan[i, :, : len(store.units(row, align.levels[0]))], "(h w) m -> m h w", h=fine.shape[2])
        contrast = (mass.flatten(1).std(1) / mass.flatten(1).mean(1)).argsort(descending=True)[:5].tolist()
        words.append([store.units(row, align.levels[0])[j] for j in contrast])
        maps.append(mass[contrast])
    word_regions(images, words, maps, out / "words.png", title="where the transport plan sends a word (level 1)")


def table(content: dict[str, Any]) -> Table:
    """The runs beside each other, the headline first."""
    protocol, levels = content["protocol"], ("level1", "level2", "level3")
    made = Table(
        title=f"{protocol['data']}, {protocol['resolution']} px, {protocol['steps']} steps, seed {protocol['seed']}: "
        f"{protocol['n_train']} train, {protocol['n_eval']} held out"
    )
    made.add_column("", no_wrap=True)
    for name in content["runs"]:
        made.add_column(name, justify="right", no_wrap=True)

    def row(label: str, read: Callable[[dict], Any]) -> None:
        cells = []
        for run in content["runs"].values():
            value = read(run)
            cells.append("–" if value is None else value if isinstance(value, str) else f"{value:.2f}")
        made.add_row(label, *cells)

    def three(values: Sequence[float | None]) -> str | None:
        return None if None in values else " ".join(f"{value:.1f}" for value in values)

    chance = protocol["chance"]
    row("word mAP, fitted", lambda run: sum(run["word_map"].values()) / 3)
    row("  level 1 2 3", lambda run: three([run["word_map"][level] for level in levels]))
    row(
        f"R@50, fitted (chance {chance['r50']:.0f})",
        lambda run: sum(run["retrieval_fitted"][level]["r50"] for level in levels) / 3,
    )
    row("  level 1 2 3", lambda run: three([run["retrieval_fitted"][level]["r50"] for level in levels]))
    for key in ("r10", "r50"):
        row(
            f"R@{key[1:]}, own head (chance {chance[key]:.0f})",
            lambda run, key=key: run["retrieval"] and three([run["retrieval"][level][key] for level in levels]),
        )
    row("PSNR, dB", lambda run: f"{run['psnr']:.2f} ± {run['psnr_standard_error']:.2f}")
    row("codebook usage, %", lambda run: run["usage"])
    row("perplexity", lambda run: run["perplexity"])
    row(
        "plan entropy / max",
        lambda run: None if None in run["plan_entropy"] else " ".join(f"{v:.2f}" for v in run["plan_entropy"]),
    )
    row("seconds a step", lambda run: f"{run['seconds_per_step']:.3f}")
    row("plug-in, % of step", lambda run: 100 * run["plugin_share"])
    return made


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
