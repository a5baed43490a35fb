"""`tavq caption` and `tavq prepare`: they parse, call and print."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tavq_plugin.cli.console import BROKEN, LEFT_OUT, console_for, print_json, report_errors
from tavq_plugin.cli.options import AsJson, Debug, Device, IdField, TextField
from tavq_plugin.cli.store_command import print_faults
from tavq_plugin.io.counted import counted

# Options of both `caption` and `prepare`.
Server = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of an OpenAI-compatible server, such as http://localhost:8000/v1."),
]
Prompt = Annotated[
    str | None, typer.Option(help="What to ask; {captions} marks the place of the image's own captions.")
]
WithCaptions = Annotated[bool, typer.Option(help="Give the image's own captions to the model.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Longest text, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 always takes the likeliest token.")]
Concurrency = Annotated[int, typer.Option(min=1, help="At most this many requests to the server at once.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait while the server is silent.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a failed request is repeated.")]
LargestText = Annotated[int, typer.Option(min=1, help="Bytes of one row or text; longer ones are left out.")]
ExtraBody = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='More parameters of each request to the server, such as {"top_p": 0.9}; null leaves one of ours out.',
    ),
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, metavar="PIXELS", help="Shrink images to this longest side first. Default: not.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow an http:// server on another machine; others can read what is sent.")
]


def caption(
    data: Annotated[Path, typer.Option(help="Images: a folder or file, as for prepare.")],
    out: Annotated[Path, typer.Option(help="The file to write, .jsonl or .parquet.")],
    model: Annotated[
        str, typer.Option(help="Image-text-to-text model: a folder, a hub name, or its name on the server.")
    ],
    revision: Annotated[str | None, typer.Option(help="Revision of the model; recorded with every text.")] = None,
    server: Server = None,
    prompt: Prompt = None,
    with_captions: WithCaptions = False,
    batch: Annotated[
        int, typer.Option(min=1, help="Images per call of the model; halved if memory is full. Not for a server.")
    ] = 8,
    max_new_tokens: NewTokens = 512,
    temperature: Temperature = 0.0,
    image_size: ImageSize = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first images of the data, or of the shard.")
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Only every N-th image, starting at number I (0 to N-1); each has its own --out."
        ),
    ] = "0/1",
    retry_flagged: Annotated[
        bool, typer.Option("--retry-flagged", help="Ask again for the texts that an earlier run flagged.")
    ] = False,
    stop_after: Annotated[
        int, typer.Option(min=0, help="Stop after so many requests in a row without a text; 0 goes on.")
    ] = 5,
    extra_body: ExtraBody = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Device = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 4,
    text_field: TextField = None,
    id_field: IdField = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a long text for every image, with a model here or on a server; continue where an earlier run stopped.

    Exit code 3: finished, but some images got no text. They are listed in a second file: for captions.jsonl, in
    captions.rejected.jsonl.
    """
    from tavq_plugin.data.read_settings import ReadSettings
    from tavq_plugin.preprocessing import caption as captioning
    from tavq_plugin.preprocessing.choose_captioner import choose_captioner
    from tavq_plugin.preprocessing.prepare_store import parse_part
    from tavq_plugin.preprocessing.rejections import rejections_path
    from tavq_plugin.preprocessing.server_parameters import parse_extra_body

    console = console_for(as_json)
    with report_errors(console, f"The texts so far are in {out}", as_json=as_json, debug=debug):
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        load = choose_captioner(
            model, server, revision=revision, max_new_tokens=max_new_tokens, temperature=temperature,
            dtype=dtype, device=device, concurrency=concurrency, timeout=timeout, retries=retries, insecure=insecure,
            extra_body=parse_extra_body(extra_body), say=say,
        )  # fmt: skip
        done = captioning.caption_images(
            data, out, load(), prompt=prompt, with_captions=with_captions, batch=batch, part=parse_part(shard),
            limit=limit, image_size=image_size, retry_flagged=retry_flagged, stop_after=stop_after,
            settings=ReadSettings(text_field=text_field, id_field=id_field), say=say,
        )  # fmt: skip
    console.print(
        f"{out}: {counted(done.written, 'texts')} written now, {done.already_written:,} before; "
        f"{done.retried:,} asked for twice, {done.flagged:,} flagged as flawed; "
        f"{done.prompt_tokens:,} tokens read, {done.completion_tokens:,} written"
    )
    if as_json:
        print_json(asdict(done))
    _exit_if_left_out(console, done.rejected, rejections_path(out))


def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder (captions.jsonl, metadata.jsonl, images with .txt, CUB, CelebA-HQ, COCO, .tar, .parquet, "
            "save_to_disk), or a .jsonl, .json, .csv, .tsv, .parquet or .tar file."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="In place of --data: a .jsonl or .parquet file with id and text, such as tavq caption writes."
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Texts per shard.")] = 8192,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Make only every N-th shard, starting at number I (0 to N-1).")
    ] = "0/1",
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on this Ray cluster; 'local' starts one on this machine."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on Ray.")] = 2,
    caption_model: Annotated[
        str | None, typer.Option(help="Image-text-to-text model, here or on the server, that writes the texts first.")
    ] = None,
    caption_revision: Annotated[
        str | None, typer.Option(help="Revision of that model; recorded with every text.")
    ] = None,
    caption_batch: Annotated[int, typer.Option(min=1, help="Images per call of that model.")] = 8,
    server: Server = None,
    prompt: Prompt = None,
    with_captions: WithCaptions = False,
    image_size: ImageSize = None,
    extra_body: ExtraBody = None,
    max_new_tokens: NewTokens = 512,
    temperature: Temperature = 0.0,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 4,
    insecure: Insecure = False,
    encoder: Annotated[
        str | None, typer.Option(help="Text model: a folder or a hub name. Default: MiniLM from the extra 'offline'.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a text model on the hub.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls, last, pooler or features. Default: the model's own.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the text model.")] = "float32",
    device: Device = None,
    language: Annotated[
        str, typer.Option(help="en, de or nl; zh and ja give only sentences, and words with --segmenter.")
    ] = "en",
    segmenter: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Function that cuts zh or ja into words, such as jieba:lcut."),
    ] = None,
    spacy: Annotated[str | None, typer.Option(help="Name or folder of a spaCy model that tags the words.")] = None,
    stop: Annotated[Path | None, typer.Option(help="File of words and phrases to leave out, one per line.")] = None,
    check_images: Annotated[
        bool, typer.Option(help="Decode every image, and leave out records with broken ones.")
    ] = False,
    text_field: TextField = None,
    id_field: IdField = None,
    largest_text: LargestText = 16 * 2**20,
    verify_all: Annotated[
        bool, typer.Option("--verify", help="Then read the whole store, as `tavq store verify` does.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Split and encode texts into a store, after writing them if asked to; continue where an earlier run stopped.

    Exit code 3: finished, but some records were left out. They are listed in OUT/rejected.jsonl.
    """
    from tavq_plugin.data.decode import decode_text
    from tavq_plugin.data.read_settings import ReadSettings
    from tavq_plugin.preprocessing import prepare_store as preparing
    from tavq_plugin.preprocessing.choose_captioner import choose_shard_captions
    from tavq_plugin.preprocessing.server_parameters import parse_extra_body
    from tavq_plugin.text import Splitter
    from tavq_plugin.text.manifest import shard_paths
    from tavq_plugin.text.shard_file import shard_metadata

    console = console_for(as_json)
    with report_errors(console, f"Finished shards are in {out}", as_json=as_json, debug=debug):
        source = data or captions
        if source is None or (data and captions):
            raise ValueError("give --data, or --captions in its place, not both: a captions file has ids and texts")
        if caption_model is None and (server or prompt or with_captions):
            raise ValueError("--server, --prompt and --with-captions need --caption-model: add the name of a model")
        if captions is not None and caption_model is not None:
            raise ValueError(
                "--captions already holds the texts: leave --caption-model out, or give --data with the images"
            )
        shard_captions = None if caption_model is None else choose_shard_captions(
            caption_model, server, caption_batch, prompt=prompt, with_captions=with_captions,
            image_size=image_size, extra_body=parse_extra_body(extra_body),
            revision=caption_revision, max_new_tokens=max_new_tokens, temperature=temperature, device=device,
            concurrency=concurrency, timeout=timeout, retries=retries, insecure=insecure,
        )  # fmt: skip
        stop_words = decode_text(stop.read_bytes()).splitlines() if stop else ()
        splitter = Splitter(language=language, spacy=spacy, segmenter=segmenter, stop=frozenset(stop_words))
        if missing := [name for name in ("word", "phrase") if name not in splitter.supported]:
            console.print(f"{language} gives no {' and no '.join(missing)} units, only {', '.join(splitter.supported)}")
        result = preparing.prepare(
            source, out, preparing.encoder_loader(encoder, revision, pooling, dtype, device),
            splitter=splitter, shard_size=shard_size, part=preparing.parse_part(shard), captions=shard_captions,
            check_images=check_images,
            settings=ReadSettings(text_field=text_field, id_field=id_field, largest_text=largest_text),
            ray="" if ray == "local" else ray, workers=workers,
        )  # fmt: skip
    state = "finished" if result.finished else "other parts are still missing"
    console.print(
        f"{out}: {counted(result.texts, 'texts')} in {counted(result.shards, 'shards')}, {result.made} made now; "
        f"{state}"
    )
    if result.without_text:
        console.print(f"{result.without_text:,} of {result.texts:,} without text; they add nothing to the loss")
    if result.skipped:
        console.print(result.skipped, markup=False)
    if result.in_pieces:
        console.print(
            f"longer than the encoder's limit: {counted(result.in_pieces, 'units')}, encoded in pieces, so nothing was "
            "cut off"
        )
    if unread := sum((shard_metadata(path) or {}).get("unread", 0) for path in shard_paths(out)):
        console.print(f"{unread:,} texts have letters that the tagger cannot read: they are in sentences only")
    faults = print_faults(console, out, debug=debug) if verify_all and result.finished else []
    if as_json:
        print_json({**asdict(result), **({"faults": faults} if verify_all else {})})
    if faults:
        raise typer.Exit(BROKEN)
    _exit_if_left_out(console, result.rejected, out / "rejected.jsonl")


def _exit_if_left_out(console: Console, number: int, file: Path) -> None:
    if number:
        console.print(f"{counted(number, 'records')} left out; {file} lists each with its place and reason")
        raise typer.Exit(LEFT_OUT)
