"""tavq-plugin: a codebook that speaks language, for any existing VQ image tokenizer (TA-VQ, arXiv 2503.01261).

Public names are imported on first use, so that `import tavq_plugin` and `tavq --help` do not load torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tavq_plugin import moved

if TYPE_CHECKING:
    from tavq_plugin.attach import Attachment, attach, detach
    from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
    from tavq_plugin.losses.text_alignment import TextAlignment
    from tavq_plugin.types import Codes, Level, Quantized, Units
    from tavq_plugin.use.run import Run, load

__all__ = [
    "Attachment",
    "Codes",
    "Level",
    "Quantized",
    "Run",
    "TextAlignment",
    "Tokenizer",
    "Units",
    "attach",
    "detach",
    "load",
    "wrap",
]

_MODULE_OF = {
    "Attachment": "attach",
    "attach": "attach",
    "detach": "attach",
    "Tokenizer": "hosts.tokenizer",
    "wrap": "hosts.tokenizer",
    "TextAlignment": "losses.text_alignment",
    "Codes": "types",
    "Level": "types",
    "Quantized": "types",
    "Units": "types",
    "Run": "use.run",
    "load": "use.run",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value  # so that the next use does not call this function
        return value
    if find_spec(f"{__name__}.{name}"):  # a submodule, as in `tavq.ot.solve`
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose `attach` stays the function, even after Python has imported the module of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
moved.install()
