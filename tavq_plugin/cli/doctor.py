"""`tavq doctor`: would a training step with this host, optimizer and captions work, and what mends it if not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.hosts.hooks import find_module
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.types import GRANULARITIES, Codes, Units

TEXT_DIM = 16  # of the random units of the dry run


@dataclass
class Report:
    """What was found, and what stands in the way (`problems`, each with its mend); `notes` do not."""

    host: str
    adapter: str | None = None
    quantizer: str | None = None
    taps: list[str] = field(default_factory=list)
    levels: list[list[int]] = field(default_factory=list)  # b h w of each level's indices, fine → coarse
    codebook: list[int] | None = None  # k c
    grad_to: str | None = None
    gradient: dict[str, dict[str, float]] = field(default_factory=dict)  # granularity → norm at stem, codebook, head
    text: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a training step would work."""
        return not self.problems


def examine(
    host: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    align: nn.Module | Iterable[nn.Module] | None = None,
    *,
    captions: str | Path | None = None,
    **wrapping: Any,
) -> Report:
    """One dry step of a host: taps, levels, where the gradient of each level goes, what the optimizer misses, texts.

    align: what `tavq.attach` gave, or the modules whose parameters the optimizer must hold. captions: a folder with
    captions.jsonl or same-named .txt files. wrapping: as for `tavq.wrap`. The host runs forward in training mode, so
    a codebook moved by EMA moves once.
    """
    report = Report(f"{type(host).__module__}.{type(host).__qualname__}")
    try:
        tokenizer = wrap(host, **wrapping)
    except Exception as error:  # whatever the host raised is what is to be reported
        report.problems.append(" ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
    else:
        _describe(report, tokenizer)
        reached = _gradients(report, tokenizer)
        if optimizer is not None:
            _optimizer(report, host, optimizer, align, reached)
    if captions is not None:
        _texts(report, captions)
    return report


def _describe(report: Report, tokenizer: Tokenizer) -> None:
    adapter = tokenizer.adapter
    table = adapter.codebook()
    quantizer = type(find_module(adapter.model, adapter.quantizer))
    report.adapter = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    report.quantizer = f"{adapter.quantizer} ({quantizer.__module__}.{quantizer.__qualname__})"
    report.taps = list(adapter.taps)
    report.codebook = None if table is None else list(table.shape)
    report.grad_to = tokenizer.hierarchy.grad_to
    if report.grad_to == "encoder":
        report.notes.append("the codebook takes no gradient (EMA, constant, frozen): the alignment trains the encoder")


def _gradients(report: Report, tokenizer: Tokenizer) -> set[int]:
    """Fill the gradient table; ids of the host's parameters that the alignment reaches."""
    host = tokenizer.host
    parameters = [p for p in host.parameters() if p.requires_grad]
    stem = next((p for p in parameters if p.ndim > 1), None)
    alignment = TextAlignment(tokenizer, TEXT_DIM).to(next(host.parameters()).device)
    table = tokenizer.adapter.codebook()
    behind = _behind(table, parameters)
    reached: set[int] = set()
    codes = _run(report, tokenizer)
    if codes is None:
        return reached
    report.levels = [list(level.indices.shape) for level in codes.levels]
    head = list(alignment.parameters())
    for index, name in enumerate(GRANULARITIES):
        alignment.level_weights = tuple(float(i == index) for i in range(3))
        loss = alignment(codes, _units(codes))
        found = torch.autograd.grad(loss, [*parameters, *head], retain_graph=True, allow_unused=True)
        norms = {id(p): float(g.norm()) for p, g in zip([*parameters, *head], found, strict=True) if g is not None}
        reached |= {id(p) for p in parameters if norms.get(id(p), 0) > 0}
        row = {"stem": [] if stem is None else [stem], "codebook": behind, "head": head}
        report.gradient[name] = {place: sum(norms.get(id(p), 0) ** 2 for p in ps) ** 0.5 for place, ps in row.items()}
        if not (report.gradient[name]["stem"] > 0 or report.gradient[name]["codebook"] > 0):
            report.problems.append(
                f"the {name} level's alignment reaches neither encoder nor codebook: unfreeze one of them, or tap "
                "modules that carry gradient, taps="
            )
    return reached


def _run(report: Report, tokenizer: Tokenizer) -> Codes | None:
    training = [(module, module.training) for module in tokenizer.host.modules()]
    try:
        probe = tokenizer.adapter.probe()
        tokenizer.host.train()
        return tokenizer.encode(torch.rand_like(probe.expand(2, *probe.shape[1:])) * 2 - 1)
    except Exception as error:
        report.problems.append(f"a training forward fails: {type(error).__name__}: {error}")
        return None
    finally:
        for module, flag in training:
            module.training = flag


def _units(codes: Codes) -> dict[str, Units]:
    b, device = len(codes.final.indices), codes.final.latent.device
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(b, 4, TEXT_DIM, generator=draw).to(device)
    return {name: Units(embeddings, torch.ones(b, 4, dtype=torch.bool, device=device)) for name in GRANULARITIES}


def _behind(table: Tensor | None, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    if table is None or not table.requires_grad:
        return []
    found = torch.autograd.grad(table, parameters, torch.ones_like(table), allow_unused=True)
    return [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]


def _optimizer(
    report: Report,
    host: nn.Module,
    optimizer: torch.optim.Optimizer,
    align: nn.Module | Iterable[nn.Module] | None,
    reached: set[int],
) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missed = [name for name, p in host.named_parameters() if p.requires_grad and id(p) not in held]
    lost = [name for name, p in host.named_parameters() if id(p) in reached and id(p) not in held]
    if lost:
        report.problems.append(
            f"the optimizer misses {len(lost)} of the host's parameters that the alignment reaches ({_some(lost)}): "
            "build it from all of the encoder's, the quantizer's and the codebook's parameters"
        )
    elif missed:
        report.notes.append(
            f"the optimizer misses {len(missed)} trainable parameters that the alignment does not reach "
            f"({_some(missed)}): another optimizer's, as a discriminator's?"
        )
    if align is None:
        report.notes.append("no heads were given: tavq.attach(host, optimizer) adds them to the optimizer itself")
        return
    modules = [align] if isinstance(align, nn.Module) else list(align)
    heads = [name for module in modules for name, p in module.named_parameters() if id(p) not in held]
    if heads:
        report.problems.append(
            f"the optimizer misses {len(heads)} of the plug-in's parameters ({_some(heads)}), so they would never "
            'train: use tavq.attach(host, optimizer), or optimizer.add_param_group({"params": align.parameters()})'
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _texts(report: Report, captions: str | Path) -> None:
    from tavq_plugin.data.folders import ImageTextFolder
    from tavq_plugin.text.splitter import split

    try:
        pack = ImageTextFolder.read(captions)
    except (ValueError, OSError) as error:
        report.problems.append(f"no captions: {error}")
        return
    texts = [record.text for record in pack.records if record.text]
    report.text = {"images": len(pack.records), "with_text": len(texts)}
    if not texts:
        report.problems.append(
            f"none of the {len(pack.records)} images in {captions} has a text, so the alignment would be exactly 0: "
            'fill the "long_text" or "captions" of captions.jsonl, or write .txt files named as the images'
        )
        return
    if pack.without_text:
        report.notes.append(f"{pack.without_text} of {len(pack.records)} images have no text; they add exactly 0")
    units = [split(text) for text in texts[:200]]
    report.text |= {f"{name}s_a_text": sum(len(text[name]) for text in units) / len(units) for name in GRANULARITIES}


def lines(report: Report) -> list[str]:
    """A report to be read."""
    out = [f"host       {report.host}"]
    if report.adapter:
        out += [f"adapter    {report.adapter}", f"quantizer  {report.quantizer}"]
        out += [f"level {i}    {path}" for i, path in enumerate(report.taps, 1)]
        out += [f"grids      {', '.join('×'.join(map(str, level[1:])) for level in report.levels)}"]
        out += [f"codebook   {report.codebook or 'none'}, grad_to={report.grad_to}"]
    if report.gradient:
        out += ["gradient norm of a random text's alignment:", f"{'':11}{'stem':>10}{'codebook':>10}{'head':>10}"]
        out += [
            f"  {name:9}" + "".join(f"{norms[place]:10.2e}" for place in ("stem", "codebook", "head"))
            for name, norms in report.gradient.items()
        ]
    if report.text:
        out += ["text       " + ", ".join(f"{name} {value:g}" for name, value in report.text.items())]
    out += [f"note       {note}" for note in report.notes]
    out += [f"PROBLEM    {problem}" for problem in report.problems]
    return [*out, "a training step would work" if report.ok else "a training step would NOT work"]
