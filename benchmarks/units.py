"""How well and how fast long text is split: python benchmarks/units.py.

Quality on three files of tests/data, annotated by hand: long_descriptions.txt (80 to 130 words, as models write),
descriptions.txt (some 35 words) and markdown_descriptions.txt (markdown, as models write it; the rules were developed
on its first 20, and the last 20 are held out); distinct units of each description, summed over all. Speed in CPU
seconds of one thread, on the long ones.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.machine import machine
from common.result_files import save_results

from tavq_plugin.text import Splitter
from tavq_plugin.types import GRANULARITIES

FILES = {"long": "long_descriptions.txt", "short": "descriptions.txt"}
MARKDOWN_FILE = "markdown_descriptions.txt"
MARKDOWN = {"markdown": slice(None), "markdown, development": slice(20), "markdown, held-out": slice(20, None)}
TARGETS = {"word": 0.97, "phrase": 0.90, "sentence": 0.95}  # least F1
MARKDOWN_TARGETS = {"word": 0.985, "phrase": 0.93, "sentence": 0.97}
_WORD = re.compile(r"\*((?:[A-Za-z]\.){2,}|(?:Dr|Mr|Mrs|St|Sept|H|J)\.|\w+(?:[-:.,/]\w+)*%?)")
SENTENCES_A_SECOND = 500
ROUNDS = 5


class Annotated(NamedTuple):
    """A description and its true distinct units by granularity."""

    text: str
    units: Mapping[str, frozenset[str]]


def read(name: str = "long") -> list[Annotated]:
    """The descriptions of an annotated file; its first lines explain the marks."""
    folder = Path(__file__).parents[1] / "tests" / "data"
    if name in MARKDOWN:
        blocks = (folder / MARKDOWN_FILE).read_text(encoding="utf-8").split("\n=====\n")[1:]
        pairs = [block.rsplit("\n-----\n", 1) for block in blocks]  # the text as it is, and as it is read
        return [_read(marked, text) for text, marked in pairs][MARKDOWN[name]]
    blocks = (folder / FILES[name]).read_text(encoding="utf-8").split("\n\n")
    return [_read(block) for block in blocks if not block.startswith("#")]


def _read(block: str, text: str | None = None) -> Annotated:
    bare = re.sub(r"[*~]", "", block)
    sentences = [line.replace("[", "").replace("]", "") for line in bare.strip().splitlines()]
    units = {
        "word": frozenset(word.lower() for word in _WORD.findall(block)),
        "phrase": frozenset(phrase.lower() for phrase in re.findall(r"\[(.*?)\]", bare)),
        "sentence": frozenset(sentences),
    }
    return Annotated(" ".join(sentences) if text is None else text, units)


def quality(descriptions: Iterable[Annotated], splitter: Splitter | None = None) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1, and what was missed or made up, by granularity; only noun phrases are annotated."""
    splitter = splitter or Splitter(phrases=("noun",))
    sums: dict[str, dict[str, Any]] = {name: {"missed": [], "made_up": [], "hits": 0} for name in GRANULARITIES}
    for description in descriptions:
        found = splitter(description.text)
        for name, tally in sums.items():
            got, true = set(found.texts(name)), description.units[name]
            tally["hits"] += len(got & true)
            tally["missed"] += sorted(true - got)
            tally["made_up"] += sorted(got - true)
    for tally in sums.values():
        hits = tally.pop("hits")
        precision = hits / max(1, hits + len(tally["made_up"]))
        recall = hits / max(1, hits + len(tally["missed"]))
        f1 = 2 * hits / max(1, 2 * hits + len(tally["made_up"]) + len(tally["missed"]))
        tally |= {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}
    return sums


def speed(texts: list[str]) -> dict[str, float]:
    """Sentences per CPU second that are split into all units: median and spread of the rounds."""
    splitter = Splitter()
    splitter(texts[0])  # loads the tagger
    rates = []
    for _ in range(ROUNDS):
        began = time.process_time()
        sentences = sum(len(splitter(text).sentence) for text in texts)
        rates.append(sentences / (time.process_time() - began))
    rates.sort()
    return {"sentences_per_cpu_s": round(rates[len(rates) // 2]), "least": round(rates[0]), "most": round(rates[-1])}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/units.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--errors", action="store_true", help="print every unit missed or made up")
    parser.add_argument("--note", default="", help="a line about the machine for the table")
    arguments = parser.parse_args(argv)
    result = {"splitter": Splitter().fingerprint, "machine": machine(), "note": arguments.note}
    for file in (*FILES, *MARKDOWN):
        descriptions = read(file)
        lengths = sorted(len(description.text.split()) for description in descriptions)
        result[file] = {
            "descriptions": len(descriptions),
            "words": {"least": lengths[0], "mean": round(sum(lengths) / len(lengths)), "most": lengths[-1]},
            "sentences": sum(len(d.units["sentence"]) for d in descriptions),
            "quality": quality(descriptions),
        }
        if arguments.errors:
            for name, tally in result[file]["quality"].items():
                print(f"{file}, {name}\n  missed: {tally['missed']}\n  made up: {tally['made_up']}")
    result["speed"] = speed([description.text for description in read()])
    page = table(result)
    print(page)
    save_results(arguments.out / "units.json", result, page)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    pace = result["speed"]
    lines = [
        "# Splitting hand-annotated descriptions",
        "",
        f"{result['splitter']}; {result['machine']}. {result['note']}".strip(),
    ]
    for file in (*FILES, *MARKDOWN):
        found, targets = result[file], MARKDOWN_TARGETS if file in MARKDOWN else TARGETS
        words = found["words"]
        lines += [
            "",
            f"{found['descriptions']} descriptions ({file}) of {words['least']} to {words['most']} words (mean "
            f"{words['mean']}), {found['sentences']} sentences:",
            "",
            "| units | precision | recall | F1 | target |",
            "|---|---|---|---|---|",
        ]
        for name, tally in found["quality"].items():
            label = {"word": "content words", "phrase": "noun phrases, exact", "sentence": "sentences, exact"}[name]
            lines.append(f"| {label} | {tally['precision']} | {tally['recall']} | {tally['f1']} | {targets[name]} |")
    lines += [
        "",
        "The 40 markdown descriptions were written and marked before any splitter was run on them. The rules were "
        "developed on the first 20; the other 20 were only measured.",
        "",
        f"{pace['sentences_per_cpu_s']:,} sentences a CPU second on one thread ({pace['least']:,}–{pace['most']:,} in "
        f"{ROUNDS} rounds; target {SENTENCES_A_SECOND}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
