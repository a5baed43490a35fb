"""The perceptual loss that is added to L1: LPIPS, or distances between a frozen network's feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.instantiate import instantiate
from tavq_plugin.networks.lpips import BACKBONES, load_lpips
from tavq_plugin.networks.weights import read_state_dict, require_hash


@dataclass(frozen=True)
class PerceptualRecipe:
    """Settings of the perceptual loss."""

    kind: str = "none"  #: "none", "lpips", or "frozen": feature maps of any frozen network
    weight: float = 1.0
    path: str = ""  #: weight file: torchvision's own for lpips; the state dict of `network` for frozen
    sha256: str = ""  #: the file's SHA-256, or its first 8 or more digits; empty: not checked
    network: str = ""  #: lpips: vgg (default), alex or squeeze; frozen: a class, or one of hosts.instantiate.BUILDERS
    layers: tuple[str, ...] = ()  #: frozen: module paths whose outputs are compared

    def __post_init__(self) -> None:
        if self.kind not in ("none", "lpips", "frozen"):
            raise ValueError(f"kind must be one of none, lpips, frozen, got {self.kind!r}")
        if not self.weight >= 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")
        if 0 < len(self.sha256) < 8:
            raise ValueError(f"sha256 must have 8 digits or more, got {self.sha256!r}")


def build_perceptual(recipe: PerceptualRecipe, *, allow: Sequence[str] = ()) -> nn.Module | None:
    """The recipe's distance, frozen, in eval mode; (b 3 h w, b 3 h w) in [-1, 1] -> scalar. None for kind "none".

    Raises FileNotFoundError if the weight file is missing and ValueError if it has another hash or other content.
    """
    if recipe.kind == "none" or recipe.weight == 0:
        return None
    built = MeanLpips.load(recipe) if recipe.kind == "lpips" else FeatureDistance.load(recipe, allow=allow)
    return built.eval().requires_grad_(False)


class MeanLpips(nn.Module):
    """LPIPS averaged over a batch; (b 3 h w, b 3 h w) in [-1, 1] -> scalar."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @classmethod
    def load(cls, recipe: PerceptualRecipe) -> MeanLpips:
        """LPIPS with the recipe's backbone and weight file."""
        name = recipe.network or "vgg"
        if name not in BACKBONES:
            raise ValueError(f"perceptual.network is {name!r}: LPIPS has the backbones {', '.join(BACKBONES)}")
        return cls(load_lpips(checked_path(recipe, f"torchvision's {BACKBONES[name]}"), name))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Mean distance of two batches."""
        return self.module(one, other).float().mean()


class FeatureDistance(nn.Module):
    """Squared distance between a frozen network's feature maps, normalised at each place (LPIPS without its weights).

    It is summed over channels and averaged over places and layers. Images in [-1, 1] are first scaled as ImageNet's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.layers = network, layers
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, recipe: PerceptualRecipe, *, allow: Sequence[str] = ()) -> FeatureDistance:
        """The recipe's network with the recipe's weights, loaded strictly."""
        if not recipe.network or not recipe.layers:
            raise ValueError(
                "perceptual.kind=frozen needs perceptual.network, such as torchvision.models.squeezenet1_0, and "
                "perceptual.layers, module paths in it, such as [features.3, features.7, features.12]"
            )
        state = read_state_dict(checked_path(recipe, "its state dict"))
        network = instantiate(recipe.network, {}, allow=allow, where="perceptual.network")
        network.load_state_dict(state, strict=True)
        return cls(network, tuple(recipe.layers))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Distance of two batches; (b 3 h w, b 3 h w) -> scalar."""
        both = torch.cat([one, other])
        with tapped(self.network, at=self.layers) as recorder:
            self.network(((both + 1) / 2 - self.mean) / self.std)
        maps = [call.output.float() for call in recorder.take().values()]
        apart = [(a - b).square().sum(1).mean() for a, b in (F.normalize(m, dim=1).chunk(2) for m in maps)]
        return torch.stack(apart).mean()


def checked_path(recipe: PerceptualRecipe, wanted: str) -> Path:
    """The path of the recipe's weight file, after a check of its hash; `wanted` names the file if it is missing."""
    path = Path(recipe.path)
    if not recipe.path or not path.is_file():
        raise FileNotFoundError(
            f"perceptual.path is {recipe.path!r}, and there is no such file: give {wanted}, "
            "--set perceptual.path=FILE, or train without it, --set perceptual.kind=none"
        )
    require_hash(path, recipe.sha256, mend="get the file again, or correct perceptual.sha256 if you trust this one")
    return path
