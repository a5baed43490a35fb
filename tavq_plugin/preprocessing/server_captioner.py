"""Captions from an OpenAI-compatible server (vLLM, SGLang, …), with retries and a bounded number of requests at once.

It uses the standard library. The `openai` client would take as many lines and one more dependency, needs a placeholder
if there is no key, and hides why a connection failed. Redirects are refused, because urllib would send the key along.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from PIL import Image

from tavq_plugin.io.redacted import redacted
from tavq_plugin.preprocessing.caption_answer import CaptionAnswer, CaptionFailure
from tavq_plugin.preprocessing.retry_after import seconds_to_wait
from tavq_plugin.preprocessing.server_answer import is_filtered, read_completion
from tavq_plugin.preprocessing.server_key import KEY_VARIABLE, server_key, without_key
from tavq_plugin.preprocessing.server_parameters import ServerParameters

_REQUEST_REFUSED = {400, 413, 415, 422}  # the server refuses this request; another one may pass
_ALL_REFUSED = {301, 302, 303, 307, 308, 401, 403, 404, 405}  # the server would refuse every request
_MAX_ANSWER_BYTES = 16 * 2**20
_LONGEST_ERROR = 4096  # bytes of an error that are read
_MOST_MENDS = 8  # requests whose parameters are corrected after an error
_MEND = "is the server running? See its log, and start it again; if it is only slow, raise --timeout"
_FEWER_REQUESTS = "the server asks for fewer requests: lower --concurrency, or raise --retries"
_OTHER_REQUESTS = "the server refuses what it is asked: check --model, --image-size and --extra-body"


class ServerFailure(CaptionFailure):
    """A request that got no text after all its retries; the message says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # urllib then raises HTTPError


class ServerCaptioner:
    """Posts each image to `{url}/chat/completions`; the address may also be given whole.

    A parameter that the server refuses is left out or renamed, as its error says, and the request repeated.

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
        extra_body: More parameters of each request, such as {"top_p": 0.9}; None leaves a parameter out.
        say: Called once with each parameter that the server refuses, in a sentence.
        insecure: If true, the key and the images may go over plain http:// to another machine.

    Raises:
        ValueError: The address has no http:// or https://, is http:// of another machine without `insecure`, or holds a
            password; `concurrency` is below 1; or the extra body holds the key, a model or messages.
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
        extra_body: Mapping[str, Any] | None = None,
        say: Callable[[str], object] = warnings.warn,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"server {url!r}: give an address with http:// or https://, such as http://localhost:8000/v1"
            )
        address = urllib.parse.urlsplit(url)
        if address.username or address.password:
            raise ValueError(
                f"the server's address holds a password: leave it out, and put the key into {KEY_VARIABLE}"
            )
        if address.scheme == "http" and not insecure and not _is_this_machine(address.hostname or ""):
            raise ValueError(
                f"server {redacted(url)}: over http://, everyone on the way can read the images and the key; give an "
                "address with https://, or --insecure (insecure=True) if you trust the network"
            )
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1 request, got {concurrency}")
        if extra_body and without_key(json.dumps(extra_body)) != json.dumps(extra_body):
            raise ValueError(f"the extra body holds the key, which would reach a file: leave it in {KEY_VARIABLE}")
        self.url, self.name, self.revision = _endpoint(url), model, revision
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self.settings |= {"extra_body": dict(extra_body)} if extra_body else {}
        self.parameters = ServerParameters(max_new_tokens, temperature, seed, extra_body, say)
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

        Waits before retries end as soon as `stopped` is set. Raises PermissionError if the server refuses all requests.
        """
        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": prompt}]
        body = {"model": self.name, "messages": [{"role": "user", "content": content}]}
        reason, of_image, stopped, mends, trial = "", False, stopped or threading.Event(), 0, 0
        while trial <= self.retries:
            parameters = self.parameters.of_attempt(attempt)
            try:
                return read_completion(self._post({**body, **parameters}))
            except urllib.error.HTTPError as error:
                said = _body_of(error)
                reason = without_key(f"HTTP {error.code}: {said[:200]}")
                if error.code in _ALL_REFUSED:
                    raise PermissionError(
                        f"{redacted(self.url)} refuses every request ({reason}): check the address, "
                        f"--model {self.name!r} and the key in {KEY_VARIABLE}"
                    ) from None  # the status line of the cause may hold the key
                if error.code in _REQUEST_REFUSED:
                    if mends < _MOST_MENDS and self.parameters.mend(parameters, said):
                        mends += 1
                        continue
                    if is_filtered(said):
                        return CaptionAnswer("", "filtered")
                    of_image = True
                    break
                wait = seconds_to_wait(error.headers.get("Retry-After", ""))
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, wait = without_key(f"{type(error).__name__}: {error}")[:500], None
            if trial < self.retries:
                wait = self.first_wait * 2**trial if wait is None else wait
                if stopped.wait(min(wait, self.longest_wait)):
                    break
            trial += 1
        mend = _OTHER_REQUESTS if of_image else _FEWER_REQUESTS if reason.startswith("HTTP 429") else _MEND
        return ServerFailure(f"no text from the server ({reason})", of_image=of_image, mend=mend)

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := server_key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self.timeout) as answer:
            content = answer.read(_MAX_ANSWER_BYTES + 1)
        if len(content) > _MAX_ANSWER_BYTES:
            raise ValueError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
        return content


def _data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _body_of(error: urllib.error.HTTPError) -> str:
    try:
        return without_key(error.read(_LONGEST_ERROR).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        return without_key(str(error.reason))


def _endpoint(url: str) -> str:
    """The address that requests go to; it may be given whole, and may have a query.

    >>> _endpoint("http://localhost:8000/v1/"), _endpoint("https://host/v1/chat/completions?api-version=1")
    ('http://localhost:8000/v1/chat/completions', 'https://host/v1/chat/completions?api-version=1')
    """
    address = urllib.parse.urlsplit(url)
    path = address.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urllib.parse.urlunsplit(address._replace(path=path))


def _is_this_machine(host: str) -> bool:
    """Whether a host's name or number is that of the machine itself.

    >>> [_is_this_machine(host) for host in ("localhost", "127.0.0.1", "::1", "localhost.example.com", "10.0.0.1")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
