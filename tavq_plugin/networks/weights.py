"""Weight files of frozen networks: known by name, checked by hash, and read as tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tavq_plugin.io.file_hash import sha256_of


def require_hash(path: Path, sha256: str, *, mend: str) -> None:
    """Raise ValueError, ending with `mend`, if a file's SHA-256 does not begin with these digits."""
    found = sha256_of(path)
    if not found.startswith(sha256.lower()):
        raise ValueError(f"{path} has sha256 {found}, and {sha256} was expected: {mend}")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file. A file that holds anything but tensors is refused, and no code in it is run."""
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that a metric needs."""

    file: str
    sha256: str  # the first digits, or all 64
    what: str  # what it is and where it comes from

    def path(self, folder: Path | None) -> Path:
        """Its path in a folder, after a check of its hash.

        Raises FileNotFoundError if it is missing and ValueError if it has another hash.
        """
        if folder is None or not (path := Path(folder) / self.file).is_file():
            place = "no folder of weights was given" if folder is None else f"{self.file} is not in {folder}"
            raise FileNotFoundError(f"{place}: put {self.file} ({self.what}) into a folder and give --weights FOLDER")
        mend = f"it is another file or a broken download; get {self.what} again"
        require_hash(path, self.sha256, mend=mend)
        return path

    def read(self, folder: Path | None) -> dict[str, Tensor]:
        """Its state dict; raises as `path`."""
        return read_state_dict(self.path(folder))


INCEPTION = WeightFile(
    "weights-inception-2015-12-05-6726825d.pth", "6726825d",
    "FID's Inception, https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
)  # fmt: skip
VGG16 = WeightFile("vgg16-397923af.pth", "397923af", "torchvision's VGG16, https://download.pytorch.org/models")
MOBILENET = WeightFile(
    "mobilenet_v2_imagenet.pth", "67306d23570c1fa3c2ef82e174c24a705189109b7ea03f23163163940ef62676",
    "MobileNetV2 1.0, 1001 classes, batch norm folded, from google-coral's test data",
)  # fmt: skip
SQUEEZENET = WeightFile(
    "squeezenet1_0_imagenet.pth", "7241730857d346c298a659134d3616d4d169214669c819b29295746e6548593d",
    "SqueezeNet 1.0 of SqueezeNet-Deep-Compression, torchvision's keys",
)  # fmt: skip

ALL = (INCEPTION, VGG16, MOBILENET, SQUEEZENET)


def files_of(folder: Path | None) -> dict[str, str]:
    """The known weight files in a folder, each with the hash it must have."""
    return {w.file: w.sha256 for w in ALL if folder is not None and (Path(folder) / w.file).is_file()}


def require_known_hashes(folder: Path | None) -> None:
    """Raise ValueError if a known weight file in a folder has another hash."""
    for weights in ALL:
        if weights.file in files_of(folder):
            weights.path(folder)
