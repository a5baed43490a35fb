"""What a captioner gives back for one image: a text with what is known about it, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True)
class CaptionAnswer:
    """One text as the model wrote it."""

    text: str
    flag: str | None = None  # what the model or server itself says is wrong: "cut", "filtered", "refusal", "thinking"
    prompt_tokens: int = 0
    completion_tokens: int = 0


class CaptionFailure(RuntimeError):
    """An image that got no text; the message says why.

    Args:
        reason: The message.
        of_image: If true, the captioner works, and refused only this image.
        mend: What the user can do about it, as a sentence without a full stop.
    """

    def __init__(self, reason: str, *, of_image: bool = False, mend: str = "see the reason") -> None:
        super().__init__(reason)
        self.of_image, self.mend = of_image, mend


class Captioner(Protocol):
    """Writes texts for images: `LocalCaptioner`, `ServerCaptioner`, or your own.

    A captioner may also have `settings`, a dict that is written with every text. One that answers single requests at
    the same time has `concurrency` and `ask(image, prompt, attempt, stopped)`; it is then asked by a sliding window.
    """

    name: str
    revision: str | None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0) -> Sequence[Any]:
        """One text (a string or a CaptionAnswer) per image, or a CaptionFailure in its place."""
