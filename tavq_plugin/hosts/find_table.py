"""Find which tensor of a quantizer is looked up, and in which form, by trying them against the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.trial_run import HostReading
from tavq_plugin.hosts.verify_reading import equals_vectors, look_up
from tavq_plugin.types import Quantized


@dataclass(frozen=True)
class TableForm:
    """How a codebook, k c, is made from a tensor: in this order."""

    transposed: bool = False  # the tensor is c k
    normalised: bool = False  # rows of length 1
    projection: str = ""  # path of a linear layer or 1×1 convolution in the quantizer, through which rows go
    normalised_after: bool = False  # rows of length 1, after the projection

    def table(self, tensor: Tensor, module: nn.Module) -> Tensor:
        """The codebook, with the tensor's gradient; k c, 1 k c or their transposes -> k c."""
        table = tensor.squeeze(0) if tensor.ndim == 3 else tensor
        table = table.T if self.transposed else table
        table = F.normalize(table, dim=1) if self.normalised else table
        if self.projection:
            layer = module.get_submodule(self.projection)
            is_linear = isinstance(layer, nn.Linear)
            table = (
                layer(table) if is_linear else rearrange(layer(rearrange(table, "k c -> k c 1 1")), "k c 1 1 -> k c")
            )
        return F.normalize(table, dim=1) if self.normalised_after else table

    def __str__(self) -> str:
        parts = [
            "transposed" if self.transposed else "",
            "L2-normalised" if self.normalised else "",
            f"through {self.projection}" if self.projection else "",
            "then L2-normalised" if self.normalised_after else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class FoundTable:
    """A tensor of the quantizer and the form in which it is looked up."""

    path: str
    form: TableForm

    def table(self, module: nn.Module) -> Tensor:
        """The live codebook of a quantizer; k c."""
        found: object = module
        for name in self.path.split("."):
            found = getattr(found, name)
        assert isinstance(found, Tensor)  # it was one when it was found
        return self.form.table(found, module)

    def __str__(self) -> str:
        return ", ".join(part for part in (self.path, str(self.form)) if part)


def can_be_looked_up(final: object) -> bool:
    """Whether a quantizer's call is read such that its vectors may be rows of a table."""
    if (
        not isinstance(final, Quantized)
        or not isinstance(final.vectors, Tensor)
        or not isinstance(final.indices, Tensor)
    ):
        return False
    vectors, indices = final.vectors, final.indices
    if final.looked_up is not None or vectors.ndim != 4 or indices.shape != vectors[:, 0].shape:
        return False
    return indices.dtype == torch.int64 and int(indices.min()) >= 0 and bool(vectors.isfinite().all())


def find_table(module: nn.Module, reading: HostReading) -> FoundTable | None:
    """The first tensor and form whose rows at the indices are the vectors; None if there is none.

    Simple forms come before others, then parameters before buffers and plain attributes.
    """
    tensors = list(matrices_of(module))
    for form in _forms(module):
        for path, tensor in tensors:
            if matches(form, tensor, module, reading):
                return FoundTable(path, form)
    return None


def find_form(tensor: Tensor, module: nn.Module, reading: HostReading) -> TableForm | None:
    """The first form of a tensor whose rows at the indices are the vectors; None if there is none."""
    return next((form for form in _forms(module) if matches(form, tensor, module, reading)), None)


def matches(form: TableForm, tensor: Tensor, module: nn.Module, reading: HostReading) -> bool:
    """Whether the vectors are rows of this form of a tensor."""
    final = reading.final
    try:
        with torch.no_grad():
            table = form.table(tensor, module)
    except RuntimeError:  # the projection is for another width
        return False
    if table.ndim != 2 or table.shape[1] != final.vectors.shape[1] or int(final.indices.max()) >= len(table):
        return False
    return equals_vectors(look_up(final.indices, table), reading)


def _forms(module: nn.Module) -> list[TableForm]:
    projections = [
        path
        for path, layer in module.named_modules()
        if path and (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)))
    ]
    plain = [TableForm(t, n) for n in (False, True) for t in (False, True)]
    behind = [
        TableForm(t, n, projection, after)
        for projection in projections
        for after in (False, True)
        for n in (False, True)
        for t in (False, True)
    ]
    return plain + behind


def matrices_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Matrices of a module by path: parameters, then buffers, then plain attributes; k c or 1 k c."""
    attributes = (
        (f"{prefix}.{name}" if prefix else name, value)
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
    )
    seen = set()
    for path, tensor in (*module.named_parameters(), *module.named_buffers(), *attributes):
        is_matrix = isinstance(tensor, Tensor) and (tensor.ndim == 2 or (tensor.ndim == 3 and len(tensor) == 1))
        if is_matrix and tensor.is_floating_point() and path not in seen:
            seen.add(path)
            yield path, tensor
