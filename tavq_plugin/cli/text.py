"""`tavq caption`, `tavq prepare` and `tavq store`; thin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tavq_plugin.cli.console import report_errors

if TYPE_CHECKING:
    from tavq_plugin.text.manifest import Manifest

REJECTED = 3  # exit code of a run that went through and left something out
FAULTY = 1  # exit code of `store verify` where something is to be made again
store = typer.Typer(no_args_is_help=True, help="Look after prepared text stores.")

# Options that `caption` and `prepare` share.
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="OpenAI-compatible server, as http://localhost:8000/v1.")
]
Prompt = Annotated[str | None, typer.Option(help="What to ask; {captions} marks the place of captions.")]
WithCaptions = Annotated[bool, typer.Option(help="Give an image's own captions to the model.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Of a long text.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the likeliest text.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests to the server at once.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server's answer.")]
Retries = Annotated[int, typer.Option(min=0, help="Of a request that fails.")]
Device = Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")]


def caption(
    data: Annotated[Path, typer.Option(help="Images: a folder or file as for prepare.")],
    out: Annotated[Path, typer.Option(help="The file to write, .jsonl or .parquet.")],
    model: Annotated[str, typer.Option(help="Image-text-to-text model, a folder or a hub name; or the server's.")],
    revision: Annotated[str | None, typer.Option(help="Of the model; kept with every text.")] = None,
    server: Server = None,
    prompt: Prompt = None,
    with_captions: WithCaptions = False,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; with a server, between writes.")] = 8,
    max_new_tokens: NewTokens = 512,
    temperature: Temperature = 0.0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Device = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 4,
) -> None:
    """Write a long text for every image, with a model here or on a server; go on where a former run stopped.

    Exit code 3: finished, but some images got no text; they are in OUT.rejected.jsonl, so for captions.jsonl
    in captions.rejected.jsonl.
    """
    from tavq_plugin.preprocessing import caption as captioning
    from tavq_plugin.preprocessing.choose_captioner import captioner_of

    console = Console()
    options = {"revision": revision, "max_new_tokens": max_new_tokens, "temperature": temperature}
    with report_errors(console, f"The texts so far are in {out}"):
        load, batch = captioner_of(
            model, server, batch, dtype=dtype, device=device, concurrency=concurrency, timeout=timeout,
            retries=retries, **options,
        )  # fmt: skip
        done = captioning.caption(data, out, load(), prompt=prompt, with_captions=with_captions, batch=batch)
    console.print(
        f"{out}: {done.written:,} texts written now, {done.there:,} before; {done.retried:,} asked for twice, "
        f"{done.flagged:,} of them flagged"
    )
    _left_out(console, done.rejected, captioning.report_beside(out))


def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder (captions.jsonl, images with .txt, CUB, CelebA-HQ, COCO, .tar), or a .jsonl, .csv, .parquet "
            "or .tar file."
        ),
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="In place of --data: a .jsonl or .parquet of id and text, as tavq caption's.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Texts a shard.")] = 8192,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only every N-th shard from the I-th (0 to N-1).")] = "0/1",
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray; 'local' starts one on this machine.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on Ray.")] = 2,
    caption_model: Annotated[
        str | None, typer.Option(help="Ask this image-text-to-text model, or the server's, for the texts first.")
    ] = None,
    caption_revision: Annotated[str | None, typer.Option(help="Of that model; kept with every text.")] = None,
    caption_batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 8,
    server: Server = None,
    prompt: Prompt = None,
    with_captions: WithCaptions = False,
    max_new_tokens: NewTokens = 512,
    temperature: Temperature = 0.0,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 4,
    encoder: Annotated[
        str | None, typer.Option(help="Text model, a folder or a hub name; default: MiniLM of the extra 'offline'.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a text model from the hub.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls, last, pooler or features; default: the model's own way.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, while encoding.")] = "float32",
    device: Device = None,
    language: Annotated[str, typer.Option(help="en, de, nl; of zh and ja only sentences without --segmenter.")] = "en",
    segmenter: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Cuts zh and ja into words, as jieba:lcut.")
    ] = None,
    spacy: Annotated[str | None, typer.Option(help="A spaCy model that tags instead, a name or a folder.")] = None,
    stop: Annotated[Path | None, typer.Option(help="File of words and phrases to leave out, one a line.")] = None,
    check_images: Annotated[bool, typer.Option(help="Decode every image too, and leave broken ones out.")] = False,
) -> None:
    """Describe images where asked to, split and encode the texts into a store; go on where a former run stopped.

    Exit code 3: finished, but some records were left out; they are in OUT/rejected.jsonl.
    """
    from tavq_plugin.preprocessing import prepare_store as preparing
    from tavq_plugin.preprocessing.choose_captioner import captions_of
    from tavq_plugin.text import Splitter

    console = Console()
    with report_errors(console, f"Finished shards are in {out}"):
        if (data is None) == (captions is None):
            raise ValueError("give --data, or --captions in its place: a file of captions holds ids and texts itself")
        if caption_model is None and (server or prompt or with_captions):
            raise ValueError("--server, --prompt and --with-captions need --caption-model, the name of a model")
        if captions is not None and caption_model is not None:
            raise ValueError("--captions holds the texts: leave --caption-model out, or give --data with the images")
        asked = None if caption_model is None else captions_of(
            caption_model, server, caption_batch, prompt=prompt, with_captions=with_captions,
            revision=caption_revision, max_new_tokens=max_new_tokens, temperature=temperature, device=device,
            concurrency=concurrency, timeout=timeout, retries=retries,
        )  # fmt: skip
        left_out = stop.read_text(encoding="utf-8-sig").splitlines() if stop else ()
        splitter = Splitter(language=language, spacy=spacy, segmenter=segmenter, stop=frozenset(left_out))
        if missing := [name for name in ("word", "phrase") if name not in splitter.supported]:
            console.print(f"{language}: no {' and no '.join(missing)} units, only {', '.join(splitter.supported)}")
        result = preparing.prepare(
            data or captions, out, preparing.encoder_of(encoder, revision, pooling, dtype, device),
            splitter=splitter, shard_size=shard_size, part=preparing.part_of(shard), captions=asked,
            check_images=check_images, ray="" if ray == "local" else ray, workers=workers,
        )  # fmt: skip
    state = "finished" if result.finished else "other parts are still to come"
    console.print(f"{out}: {result.texts:,} texts in {result.shards} shards, {result.made} made now; {state}")
    if result.in_pieces:
        console.print(f"{result.in_pieces:,} units exceed the encoder's limit: encoded in pieces, none cut off")
    _left_out(console, result.rejected, out / "rejected.jsonl")


@store.command()
def verify(store: Annotated[Path, typer.Argument(help="Folder of the store.")]) -> None:
    """Read a whole store and say which of its shards to make again; exit code 1 where there is one."""
    from tavq_plugin.text.manifest import verify as faults_of

    console, faulty = Console(), False
    with report_errors(console, "Nothing was changed"):
        for fault in faults_of(store):
            faulty = True
            console.print(f"{fault.path}: {fault.reason}", highlight=False, soft_wrap=True)
    if faulty:
        console.print("Delete the named shards and run the same tavq prepare again: it makes only what is missing.")
        raise typer.Exit(FAULTY)
    console.print(f"{store}: whole")


@store.command()
def merge(
    stores: Annotated[list[Path], typer.Argument(help="Folders of finished stores, in the order wanted.")],
    out: Annotated[Path, typer.Option(help="Folder of the new store.")],
) -> None:
    """Put the shards of several stores into a new one; nothing is encoded, other fingerprints are refused."""
    from tavq_plugin.text import manifest

    _merged(out, lambda: manifest.merge(stores, out))


@store.command()
def append(
    store: Annotated[Path, typer.Argument(help="Folder of the store that grows.")],
    others: Annotated[list[Path], typer.Argument(help="Folders of finished stores.")],
) -> None:
    """Add the shards of other stores to one; nothing is encoded, other fingerprints are refused."""
    from tavq_plugin.text import manifest

    _merged(store, lambda: manifest.append(store, others))


@store.command()
def whiten(
    store: Annotated[Path, typer.Argument(help="Folder of a finished store.")],
    out: Annotated[Path, typer.Option(help="Folder of the new store.")],
    like: Annotated[
        Path | None, typer.Option(help="By the whitening of this store: for held-out texts, the training store's.")
    ] = None,
    shrink: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of equal variance mixed in.")] = 0.1,
) -> None:
    """Make a store of whitened units: without their mean, with equal spread in every direction; kept in the store."""
    from tavq_plugin.text import whitening

    _merged(out, lambda: whitening.whiten(store, out, like=like, shrink=shrink))


def _merged(out: Path, merge: Callable[[], Manifest]) -> None:
    console = Console()
    with report_errors(console, "No store was changed"):
        merged = merge()
    console.print(f"{out}: {merged.texts:,} texts in {merged.shards} shards")


def _left_out(console: Console, number: int, file: Path) -> None:
    if number:
        console.print(f"{number:,} records left out, with their place and reason in {file}")
        raise typer.Exit(REJECTED)
