"""Ask a captioner for the texts of images, in batches or by a sliding window of requests, and append them to a file.

A flawed text is asked for once more. A captioner that fails several times in a row stops the run.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image

from tavq_plugin.data.images import open_image
from tavq_plugin.data.records import Record, Reject, Rejection
from tavq_plugin.preprocessing.caption_answer import CaptionAnswer, Captioner, CaptionFailure
from tavq_plugin.preprocessing.caption_cleaning import clean_caption
from tavq_plugin.preprocessing.caption_quality import caption_flaw
from tavq_plugin.preprocessing.captions_file import FIELDS, CaptionsFile, image_sha256
from tavq_plugin.preprocessing.out_of_memory import free_memory, is_out_of_memory
from tavq_plugin.preprocessing.request_window import in_window
from tavq_plugin.preprocessing.server_captioner import ServerFailure

STOP_AFTER = 5  # failures in a row
_ASKED_AGAIN = ("empty", "refusal", "repeating")  # flaws that a second attempt may mend
_MORE_MEMORY = "give a smaller --image-size or --max-new-tokens, or --dtype bfloat16, or free the device's memory"


@dataclass
class CaptionCounts:
    """What one run did, in numbers of texts."""

    written: int = 0
    already_written: int = 0  # by an earlier run, and not asked for again
    retried: int = 0  # asked for a second time, because the first text was empty, a refusal or repeating
    flagged: int = 0  # still flawed; written with the flag
    rejected: int = 0  # records without a text
    prompt_tokens: int = 0  # that the model read, images included; of both attempts
    completion_tokens: int = 0  # that it wrote


class _Prepared(NamedTuple):
    """A record that is ready to be asked about."""

    image: Image.Image
    image_sha256: str | None
    prompt: str


class _Result(NamedTuple):
    """A record with what came of it."""

    record: Record
    answer: CaptionAnswer | Exception
    image_sha256: str | None = None


@dataclass
class CaptionRun:
    """One run of one captioner over records; `write` appends the texts to a file.

    Args:
        captioner: What writes the texts.
        file: The file that they are appended to; its source is written with every text.
        place: File or folder of the records, for the list of rejected records.
        reject: Called with each record that gets no text.
        counts: What was done so far.
        answered: Whether any request was ever answered.
        image_size: Longest side of the images that the captioner gets, in pixels. Default: their own.
        first_attempt: Number of the first attempt; each attempt samples with a seed of its own.
        stop_after: Failures in a row that stop the run; 0 never stops it.
        say: Called with a sentence that the user should read.
    """

    captioner: Captioner
    file: CaptionsFile
    place: str
    reject: Reject
    counts: CaptionCounts = field(default_factory=CaptionCounts)
    answered: bool = False
    image_size: int | None = None
    first_attempt: int = 0
    stop_after: int = STOP_AFTER
    say: Callable[[str], object] = warnings.warn
    _failed: list[CaptionFailure] = field(default_factory=list, init=False)  # since the last answer
    _largest_batch: int | None = field(default=None, init=False)  # known to fit into memory
    _counting: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def write(self, records: Iterable[Record], batch: int) -> Iterator[int]:
        """Ask for a text for each record; yield how many more are done, each time their lines are on the disk.

        Raises ConnectionError (for a server) or OSError if `stop_after` requests in a row failed.
        """
        singly = is_asked_singly(self.captioner)
        with closing(self._by_window(records) if singly else self._by_batches(records, batch)) as finished:
            for results in finished:
                rows = [row for result in results if (row := self._row(result)) is not None]
                self.file.append(rows)
                self.counts.written += len(rows)
                self.counts.flagged += sum(row["flag"] is not None for row in rows)
                for record, answer, _ in results:
                    self._count(record, answer)
                    if isinstance(answer, Exception):
                        self.reject(Rejection(self.place, record.line, f"{record.id}: {answer}"))
                yield len(results)

    def require_an_answer(self) -> None:
        """Raise ConnectionError (for a server) or OSError if there were requests, and none was ever answered."""
        if self._failed and not self.answered:
            raise self._stopped("none of the requests was answered")

    def _row(self, result: _Result) -> dict[str, Any] | None:
        if not isinstance(result.answer, CaptionAnswer):
            return None
        own = {"id": result.record.id, "text": result.answer.text, "flag": result.answer.flag}
        known = {**self.file.source, **own, "image_sha256": result.image_sha256}
        return {name: known.get(name) for name in FIELDS}

    def _count(self, record: Record, answer: CaptionAnswer | Exception) -> None:
        """Count tokens, and failures in a row; raise if they are too many."""
        if isinstance(answer, CaptionAnswer):
            self.counts.prompt_tokens += answer.prompt_tokens
            self.counts.completion_tokens += answer.completion_tokens
            self.answered = True
            self._failed.clear()
        elif isinstance(answer, CaptionFailure):
            if answer.of_image and self.answered:
                self._failed.clear()  # the captioner works
            else:
                self._failed.append(answer)
            if self.stop_after and len(self._failed) >= self.stop_after:
                raise self._stopped(f"{len(self._failed)} requests in a row got no text, the last for {record.id}")

    def _stopped(self, what: str) -> OSError:
        failure = self._failed[-1]
        kind = ConnectionError if isinstance(failure, ServerFailure) else OSError
        return kind(f"{failure}; {what}: {failure.mend}. The same command goes on where this one stopped")

    # ---- single requests

    def _by_window(self, records: Iterable[Record]) -> Generator[list[_Result]]:
        captioner: Any = self.captioner
        with closing(in_window(records, self._answer_one, captioner.concurrency)) as window:
            for results in window:
                yield [result for _, result in results]

    def _answer_one(self, record: Record, stopped: threading.Event) -> _Result:
        """Run by several threads at once: it changes nothing of the run but the number of second attempts."""
        captioner: Any = self.captioner
        asked = self._prepared(record)
        if isinstance(asked, Exception):
            return _Result(record, asked)
        answer = _judged(captioner.ask(asked.image, asked.prompt, self.first_attempt, stopped), asked)
        if _is_asked_again(answer):
            second = captioner.ask(asked.image, asked.prompt, self.first_attempt + 1, stopped)
            answer = self._better(answer, _judged(second, asked))
        return _Result(record, answer, asked.image_sha256)

    # ---- batches

    def _by_batches(self, records: Iterable[Record], batch: int) -> Generator[list[_Result]]:
        rest = iter(records)
        while chunk := list(islice(rest, batch)):
            prepared = [self._prepared(record) for record in chunk]
            answers = iter(self._answer_batch([asked for asked in prepared if isinstance(asked, _Prepared)]))
            yield [
                _Result(record, next(answers), asked.image_sha256)
                if isinstance(asked, _Prepared)
                else _Result(record, asked)
                for record, asked in zip(chunk, prepared, strict=True)
            ]

    def _answer_batch(self, batch: Sequence[_Prepared]) -> list[CaptionAnswer | Exception]:
        answers = self._ask(batch, self.first_attempt)
        again = [i for i, answer in enumerate(answers) if _is_asked_again(answer)]
        for i, second in zip(again, self._ask([batch[i] for i in again], self.first_attempt + 1), strict=True):
            answers[i] = self._better(answers[i], second)
        return answers

    def _ask(self, batch: Sequence[_Prepared], attempt: int) -> list[CaptionAnswer | Exception]:
        if self._largest_batch and len(batch) > self._largest_batch:
            return self._ask_in_parts(batch, attempt, self._largest_batch)
        if not batch:
            return []
        try:
            answers = self.captioner([asked.image for asked in batch], [asked.prompt for asked in batch], attempt)
            return [_judged(answer, asked) for answer, asked in zip(answers, batch, strict=True)]
        except ValueError as error:  # the processor refused an image of the batch: ask for one at a time
            return [error] if len(batch) == 1 else self._ask_in_parts(batch, attempt, 1)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        free_memory()
        if len(batch) == 1:
            return [CaptionFailure(f"out of memory with one image ({reason})", mend=_MORE_MEMORY)]
        self._largest_batch = len(batch) // 2
        self.say(f"out of memory with {len(batch)} images at once: from now on at most {self._largest_batch}")
        return self._ask_in_parts(batch, attempt, self._largest_batch)

    def _ask_in_parts(self, batch: Sequence[_Prepared], attempt: int, size: int) -> list[CaptionAnswer | Exception]:
        parts = (batch[i : i + size] for i in range(0, len(batch), size))
        return [answer for part in parts for answer in self._ask(part, attempt)]

    # ---- both

    def _prepared(self, record: Record) -> _Prepared | Exception:
        prompt = (self.file.source["prompt"] or "").replace("{captions}", record.text or "-")
        try:
            if record.image is None:
                raise ValueError("the record has no image: give one to describe")
            image = open_image(record.image)
        except ValueError as error:
            return error
        if self.image_size is not None:
            image.thumbnail((self.image_size, self.image_size), Image.Resampling.LANCZOS)  # it never enlarges
        return _Prepared(image, image_sha256(record.image), prompt)

    def _better(self, first: Any, second: CaptionAnswer | Exception) -> CaptionAnswer | Exception:
        with self._counting:
            self.counts.retried += 1
        if not isinstance(second, CaptionAnswer):
            return first
        return replace(
            second if second.text else first,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
        )


def is_asked_singly(captioner: Captioner) -> bool:
    """Whether a captioner answers single requests, several at once, so that a text does not depend on a batch."""
    return hasattr(captioner, "ask")


def _is_asked_again(answer: CaptionAnswer | Exception) -> bool:
    return isinstance(answer, CaptionAnswer) and answer.flag in _ASKED_AGAIN


def _judged(answer: Any, asked: _Prepared) -> CaptionAnswer | Exception:
    """The answer, with its text cleaned, and with the flag that the text deserves."""
    if isinstance(answer, Exception):
        return answer
    if not isinstance(answer, CaptionAnswer):
        answer = CaptionAnswer(answer)
    text, flag = clean_caption(answer.text, asked.prompt)
    return replace(answer, text=text, flag=answer.flag or flag or caption_flaw(text))
