"""`tavq doctor`: whether a training step with this host, optimizer and captions would work, and if not, the fix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.cli.doctor_report import PLACES, Findings, Report
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.hosts.call_sites import holding_module
from tavq_plugin.hosts.restored import restored
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.types import GRANULARITIES, Codes, Units

TEXT_DIM = 16  # width of the random text units of the trial step


class Gradients(NamedTuple):
    """Where each level's alignment sends its gradient, and what is wrong with it."""

    norms: dict[str, dict[str, float]]  # granularity → norm at stem, codebook, head
    reached: set[int]  # ids of the host's parameters that some level reaches
    findings: Findings


def examine(
    host: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    align: nn.Module | Iterable[nn.Module] | None = None,
    *,
    captions: str | Path | None = None,
    resolution: int | None = None,
    read: ReadSettings | None = None,
    **wrapping: Any,
) -> Report:
    """Try one training step, and report on the taps, the levels and their gradients, the optimizer and the texts.

    The host is checked as `tavq.wrap` checks it, then runs one forward pass in training mode. It is left as it was.

    Args:
        host: The model to train, or the tokenizer that `wrap` made of it, whose settings are then used.
        optimizer: The host's optimizer. Default: not examined.
        align: What `tavq.attach` returned, or the modules whose parameters the optimizer must hold. Default: a note
            says that no heads were given.
        captions: Folder with captions.jsonl, or with a .txt file of the same name for each image. Default: not
            examined.
        resolution: Side of the images to train on, pixels. Default: that of `example`, else of the example images.
        read: The fields of the captions with id and text. Default: those that are understood.
        **wrapping: Settings of `tavq.wrap`. Default: those of `align`.
    """
    wrapping = {**_settings_of(align), **_settings_of(host), **wrapping}
    host = host.host if isinstance(host, Tokenizer) else host
    report = Report(host=f"{type(host).__module__}.{type(host).__qualname__}")
    try:
        tokenizer = wrap(host, log_summary=False, **wrapping)
    except Exception as error:  # the host may raise anything, and all of it belongs in the report
        report.problems.append(" ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
    else:
        report = _describe(report.host, tokenizer)
        with restored(host), torch.enable_grad():
            report.image, report.levels, gradients = _try_step(tokenizer, resolution)
        report.gradient = gradients.norms
        report.add(gradients.findings)
        if optimizer is not None:
            report.add(optimizer_findings(host, optimizer, align, gradients.reached))
    if captions is not None:
        report.text, findings = text_figures(captions, read)
        report.add(findings)
    return report


def _settings_of(value: object) -> dict[str, Any]:
    """The settings with which an attachment or a tokenizer was made; none of anything else."""
    return dict(getattr(getattr(value, "adapter", None), "settings", {}))


def _describe(name: str, tokenizer: Tokenizer) -> Report:
    adapter, grad_to = tokenizer.adapter, tokenizer.hierarchy.grad_to
    quantizer = type(holding_module(adapter.model, adapter.quantizer))
    refused = list(dict.fromkeys(text for text in (tokenizer.decode_fails, tokenizer.tokens_fail) if text))
    without_gradient = "the codebook takes no gradient (EMA, constant, frozen): the alignment trains the encoder"
    return Report(
        host=name,
        adapter=f"{type(adapter).__module__}.{type(adapter).__qualname__}",
        quantizer=f"{adapter.quantizer} ({quantizer.__module__}.{quantizer.__qualname__})",
        taps=list(adapter.taps),
        table=getattr(adapter, "table_name", ""),
        codebook=None if tokenizer.sizes.codebook is None else list(tokenizer.sizes.codebook),
        grad_to=grad_to,
        notes=[*([without_gradient] if grad_to == "encoder" else []), *(f"not needed to train: {t}" for t in refused)],
    )


def _try_step(tokenizer: Tokenizer, resolution: int | None) -> tuple[list[int], list[list[int]], Gradients]:
    """h w of the images, shapes of each level's indices in training mode, and each level's alignment gradients."""
    images = example_images(tokenizer, resolution)
    size = list(images.shape[2:])
    try:
        codes = training_codes(tokenizer, images)
    except Exception as error:  # the host may raise anything, and all of it belongs in the report
        at = f" on images of {'×'.join(map(str, size))} pixels"
        problem = f"a forward pass in training mode{at} fails: {type(error).__name__}: {error}"
        return size, [], Gradients({}, set(), Findings([problem]))
    return size, [list(level.indices.shape) for level in codes.levels], level_gradients(tokenizer, codes)


def example_images(tokenizer: Tokenizer, resolution: int | None = None) -> Tensor:
    """Two images of noise from -1 to 1, of the host's size or the given side; b c h w."""
    images = tokenizer.adapter.example_images()
    size = images.shape[2:] if resolution is None else (resolution, resolution)
    return torch.rand(2, images.shape[1], *size).to(images) * 2 - 1


def training_codes(tokenizer: Tokenizer, images: Tensor) -> Codes:
    """Codes of images in training mode; the host's training flags are restored."""
    flags = [(module, module.training) for module in tokenizer.host.modules()]
    try:
        tokenizer.host.train()
        return tokenizer.encode(images)
    finally:
        for module, training in flags:
            module.training = training


def level_gradients(tokenizer: Tokenizer, codes: Codes) -> Gradients:
    """Gradient norms of each level's alignment with random text units."""
    host = tokenizer.host
    parameters = [p for p in host.parameters() if p.requires_grad]
    alignment = TextAlignment(tokenizer, TEXT_DIM).to(next(host.parameters()).device)
    head = list(alignment.parameters())
    at: dict[str, list[nn.Parameter]] = {
        "stem": [p for p in parameters if p.ndim > 1][:1],
        "codebook": codebook_parameters(tokenizer.adapter.codebook(), parameters),
        "head": head,
    }
    norms: dict[str, dict[str, float]] = {}
    reached: set[int] = set()
    findings = Findings()
    for index, name in enumerate(GRANULARITIES):
        alignment.level_weights = tuple(float(i == index) for i in range(len(GRANULARITIES)))
        loss = alignment(codes, random_units(codes))
        found = torch.autograd.grad(loss, [*parameters, *head], retain_graph=True, allow_unused=True)
        norm_of = {id(p): float(g.norm()) for p, g in zip([*parameters, *head], found, strict=True) if g is not None}
        reached |= {id(p) for p in parameters if norm_of.get(id(p), 0) > 0}
        norms[name] = {place: sum(norm_of.get(id(p), 0) ** 2 for p in at[place]) ** 0.5 for place in PLACES}
        if not (norms[name]["stem"] > 0 or norms[name]["codebook"] > 0):
            findings.problems.append(
                f"the {name} level's alignment reaches neither encoder nor codebook: unfreeze one of them, or "
                "give taps= the paths of modules that carry gradient"
            )
    return Gradients(norms, reached, findings)


def random_units(codes: Codes) -> dict[str, Units]:
    """Four random text units per image and granularity."""
    b, device = len(codes.final.indices), codes.final.latent.device
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(b, 4, TEXT_DIM, generator=draw).to(device)
    return {name: Units(embeddings, torch.ones(b, 4, dtype=torch.bool, device=device)) for name in GRANULARITIES}


def codebook_parameters(table: Tensor | None, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters from which the host computes its codebook; none if the codebook takes no gradient."""
    if table is None or not table.requires_grad:
        return []
    found = torch.autograd.grad(table, parameters, torch.ones_like(table), allow_unused=True)
    return [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]


def optimizer_findings(
    host: nn.Module,
    optimizer: torch.optim.Optimizer,
    align: nn.Module | Iterable[nn.Module] | None,
    reached: set[int],
) -> Findings:
    """Parameters that the optimizer lacks and that should train; `reached` has ids, as in `Gradients`."""
    findings = Findings()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = {name: id(p) for name, p in host.named_parameters() if p.requires_grad and id(p) not in held}
    needed = [name for name, identity in missing.items() if identity in reached]
    if needed:
        findings.problems.append(
            f"the optimizer misses {len(needed)} of the host's parameters that the alignment reaches "
            f"({_first_names(needed)}): build it from all parameters of the encoder, the quantizer and the codebook"
        )
    elif missing:
        findings.notes.append(
            f"the optimizer misses {len(missing)} trainable parameters that the alignment does not reach "
            f"({_first_names(list(missing))}); they may belong to another optimizer, such as a discriminator's"
        )
    if align is None:
        findings.notes.append("no heads were given: tavq.attach(host, optimizer) adds them to the optimizer")
        return findings
    modules = [align] if isinstance(align, nn.Module) else list(align)
    heads = [name for module in modules for name, p in module.named_parameters() if id(p) not in held]
    if heads:
        findings.problems.append(
            f"the optimizer misses {len(heads)} of the plug-in's parameters ({_first_names(heads)}), so they would "
            'never train: use tavq.attach(host, optimizer), or optimizer.add_param_group({"params": '
            "align.parameters()})"
        )
    return findings


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def text_figures(captions: str | Path, read: ReadSettings | None = None) -> tuple[dict[str, float], Findings]:
    """How many images of a folder have a text, and the mean number of units of the first 200 texts."""
    from tavq_plugin.data.folders import ImageTextFolder
    from tavq_plugin.text.splitter import split

    try:
        pack = ImageTextFolder.read(captions, read)
    except (ValueError, OSError) as error:
        return {}, Findings(problems=[f"no captions: {error}"])
    texts = [record.text for record in pack.records if record.text]
    figures: dict[str, float] = {"images": len(pack.records), "with_text": len(texts)}
    if not texts:
        return figures, Findings(
            problems=[
                f"none of the {len(pack.records)} images in {captions} has a text, so the alignment would be exactly "
                '0: fill the "long_text" or "captions" of captions.jsonl, or write .txt files named like the images'
            ]
        )
    units = [split(text) for text in texts[:200]]
    figures |= {f"{name}s_a_text": sum(len(text[name]) for text in units) / len(units) for name in GRANULARITIES}
    notes = [f"{pack.without_text} of {len(pack.records)} images have no text; they add exactly 0 to the loss"]
    return figures, Findings(notes=notes if pack.without_text else [])
