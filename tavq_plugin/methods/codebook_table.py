"""Find the parameter that holds a host's codebook, for methods that move or replace it."""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.tokenizer import Tokenizer


def learnt_table(tokenizer: Tokenizer, method: str) -> tuple[nn.Module, str, Tensor]:
    """The module and parameter name that hold the host's codebook, and the codebook as k c.

    Raises ValueError if no parameter holds it: there is no explicit codebook, or it is computed, or moved by an EMA.
    """
    table = tokenizer.adapter.codebook()
    if table is not None and table.requires_grad:
        for module in tokenizer.host.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.data_ptr() == table.data_ptr() and parameter.numel() == table.numel():
                    return module, name, table
    host = type(tokenizer.host).__name__
    found = f"{host} has no explicit codebook" if table is None else f"that of {host} is computed, or moved by an EMA"
    raise ValueError(
        f"{method} needs a codebook that is a parameter of the host, learnt by gradient, but {found}: choose another "
        "host, or a quantizer with a learnt codebook"
    )
