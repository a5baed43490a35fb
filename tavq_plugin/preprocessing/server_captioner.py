"""Captions from an OpenAI-compatible server (vLLM, SGLang, …), with retries and a bounded number of requests at once.

It uses the standard library. The `openai` client would take as many lines and one more dependency, needs a placeholder
if there is no key, and hides why a connection failed. Redirects are refused, because urllib would send the key along.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from PIL import Image

from tavq_plugin.io.redacted import redacted
from tavq_plugin.preprocessing.caption_answer import CaptionAnswer, CaptionFailure
from tavq_plugin.preprocessing.retry_after import seconds_to_wait

_REQUEST_REFUSED = {400, 413, 415, 422}  # the server refuses this request; another one may pass
_ALL_REFUSED = {301, 302, 303, 307, 308, 401, 403, 404, 405}  # the server would refuse every request
_MAX_ANSWER_BYTES = 16 * 2**20
_KEY = "OPENAI_API_KEY"  # environment variable


_MEND = "is the server running? See its log, and start it again"


class ServerFailure(CaptionFailure):
    """A request that got no text after all its retries; the message says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # urllib then raises HTTPError


class ServerCaptioner:
    """Posts each image to `{url}/chat/completions`.

    The key is read from the environment variable OPENAI_API_KEY, if it is set. It appears in no message and no text,
    also if the server sends it back.

    Args:
        url: Address of the server, such as http://localhost:8000/v1.
        model: Name of the model on the server.
        revision: Revision of the model, written with every text. Default: none.
        max_new_tokens: Longest text, in tokens.
        temperature: Sampling temperature. 0 is greedy; a second attempt then uses 0.7.
        timeout: Longest silence of the server, in seconds.
        retries: How often a request is repeated after 429, 5xx, a timeout, a broken connection or an unreadable answer.
        concurrency: Most requests at once.
        first_wait: Seconds before the first retry; each further wait is twice as long. Retry-After overrides it.
        longest_wait: Longest wait before a retry, in seconds.
        seed: Seed sent with each request; a second attempt sends the next one.
        insecure: If true, the key and the images may go over plain http:// to another machine.

    Raises:
        ValueError: The address has no http:// or https://, is http:// of another machine without `insecure`, or holds a
            password; or `concurrency` is below 1.
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
        insecure: bool = False,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"server {url!r}: give an address with http:// or https://, such as http://localhost:8000/v1"
            )
        address = urllib.parse.urlsplit(url)
        if address.username or address.password:
            raise ValueError(f"the server's address holds a password: leave it out, and put the key into {_KEY}")
        if address.scheme == "http" and not insecure and not _is_this_machine(address.hostname or ""):
            raise ValueError(
                f"server {redacted(url)}: over http://, everyone on the way can read the images and the key; give an "
                "address with https://, or --insecure (insecure=True) if you trust the network"
            )
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1 request, got {concurrency}")
        self.url, self.name, self.revision = url.rstrip("/") + "/chat/completions", model, revision
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        self.first_wait, self.longest_wait = first_wait, longest_wait
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0
    ) -> list[CaptionAnswer | ServerFailure]:
        """One text per image, or the reason why there is none; `ask` for many images.

        Raises PermissionError if the server refuses every request.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda image, prompt: self.ask(image, prompt, attempt), images, prompts))

    def ask(
        self, image: Image.Image, prompt: str, attempt: int = 0, stopped: threading.Event | None = None
    ) -> CaptionAnswer | ServerFailure:
        """The text of one image, or the reason why there is none; several threads may ask at once.

        Waits before retries end as soon as `stopped` is set. Raises PermissionError if the server refuses every request.
        """
        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": prompt}]
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature or (0.7 if attempt else 0.0),
            "seed": self.seed + attempt,
        }
        reason, of_image, stopped = "", False, stopped or threading.Event()
        for trial in range(self.retries + 1):
            try:
                return CaptionAnswer(_without_key(_text_of(self._post(body))))
            except urllib.error.HTTPError as error:
                reason = _without_key(f"HTTP {error.code}: {_body_of(error)}")
                if error.code in _ALL_REFUSED:
                    raise PermissionError(
                        f"{self.url} refuses every request ({reason}): check the address, --model {self.name!r} and "
                        f"the key in {_KEY}"
                    ) from None  # the status line of the cause may hold the key
                if of_image := error.code in _REQUEST_REFUSED:
                    break
                wait = seconds_to_wait(error.headers.get("Retry-After", ""))
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, wait = _without_key(f"{type(error).__name__}: {error}")[:500], None
            if trial < self.retries:
                wait = self.first_wait * 2**trial if wait is None else wait
                if stopped.wait(min(wait, self.longest_wait)):
                    break
        return ServerFailure(f"no text from the server ({reason})", of_image=of_image, mend=_MEND)

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(_KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self.timeout) as answer:
            content = answer.read(_MAX_ANSWER_BYTES + 1)
        if len(content) > _MAX_ANSWER_BYTES:
            raise ValueError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
        return content


def _text_of(answer: bytes) -> str:
    """The text of a chat completion; raises ValueError for any other answer."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        start = _without_key(answer[:4096].decode("utf-8", "replace"))[:80]
        raise ValueError(f"the answer is no chat completion: {start!r}") from error
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"the text of the answer is of type {type(text).__name__}")
    return text.encode("utf-8", "replace").decode().strip()


def _data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _body_of(error: urllib.error.HTTPError) -> str:
    try:
        return _without_key(error.read(4096).decode("utf-8", "replace"))[:200]
    except OSError:
        return error.reason


def _without_key(message: str) -> str:
    """The message without the key, which a server may have sent back, as it is or encoded."""
    key = os.environ.get(_KEY, "").strip()
    if not key:
        return message
    raw = key.encode()
    forms = {
        key,
        urllib.parse.quote(key, safe=""),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
        raw.hex(),
    }
    for form in sorted(forms, key=len, reverse=True):
        escaped = r"\\*".join(map(re.escape, form))  # JSON may put backslashes before some characters
        message = re.sub(escaped, "[key]", message)
    return message


def _is_this_machine(host: str) -> bool:
    """Whether a host's name or number is that of the machine itself.

    >>> [_is_this_machine(host) for host in ("localhost", "127.0.0.1", "::1", "localhost.example.com", "10.0.0.1")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
