"""Long text from an OpenAI-compatible server (vLLM, SGLang, …): retries, and a bounded number of requests at once."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from PIL import Image

_OURS = {400, 413, 415, 422}  # this request is refused; another one may pass
_FATAL = {401, 403, 404, 405}  # every request would be refused
_LONGEST = 16 * 2**20  # bytes of an answer


class ServerFailure(RuntimeError):
    """A request that got no text, after all its retries; the message says why."""


class ServerCaptioner:
    """Posts to `{url}/chat/completions`; up to `concurrency` requests at once.

    429, 5xx, timeouts, broken connections and answers that are no answer are tried again `retries` times, after
    1, 2, 4, … seconds or as the server's Retry-After says, never longer than `longest_wait`. The key comes from
    the environment variable OPENAI_API_KEY, if set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        revision: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        seed: int = 0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"server {url!r}: give an address with http:// or https://, as http://localhost:8000/v1")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1 request, got {concurrency}")
        self.url, self.name, self.revision = url.rstrip("/") + "/chat/completions", model, revision
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        self.first_wait, self.longest_wait = first_wait, longest_wait

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0
    ) -> list[str | ServerFailure]:
        """One text an image, or why there is none; PermissionError where the server refuses every request."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda pair: self._one(*pair, attempt), zip(images, prompts, strict=True)))

    def _one(self, image: Image.Image, prompt: str, attempt: int) -> str | ServerFailure:
        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": prompt}]
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature or (0.7 if attempt else 0.0),
            "seed": self.seed + attempt,
        }
        reason = ""
        for trial in range(self.retries + 1):
            try:
                return self._text(self._post(body))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {_said(error)}"
                if error.code in _FATAL:
                    raise PermissionError(
                        f"{self.url} refuses every request ({reason}): check the address, --model {self.name!r} and "
                        "the key in OPENAI_API_KEY"
                    ) from error
                if error.code in _OURS:
                    break
                wait = error.headers.get("Retry-After", "")
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, wait = f"{type(error).__name__}: {error}", ""
            if trial < self.retries:
                time.sleep(min(float(wait) if wait.isdigit() else self.first_wait * 2**trial, self.longest_wait))
        return ServerFailure(f"no text from the server ({reason})")

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            content = answer.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise ValueError(f"an answer of more than {_LONGEST} bytes")
        return content

    def _text(self, answer: bytes) -> str:
        """The text of an answer; ValueError where it is no chat completion."""
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ValueError(f"no chat completion: {answer[:80]!r}") from error
        if text is None:
            return ""
        if not isinstance(text, str):
            raise ValueError(f"a text of type {type(text).__name__}")
        return text.encode("utf-8", "replace").decode().strip()


def _data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(200).decode("utf-8", "replace")
    except OSError:
        return error.reason
