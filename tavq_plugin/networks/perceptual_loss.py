"""Distances of features that stand beside L1: LPIPS, or the feature maps of a frozen network; weights from a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.hosts.instantiate import instantiate
from tavq_plugin.io.file_hash import sha256_of

FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


@dataclass(frozen=True)
class PerceptualRecipe:
    """The distance of features that stands beside L1."""

    kind: str = "none"  # "none" | "lpips" | "frozen": feature maps of any frozen network
    weight: float = 1.0
    path: str = ""  # weights file: of torchvision's network for lpips, of `network` for frozen
    sha256: str = ""  # of that file, or its first 8 or more digits; empty: not checked
    network: str = ""  # lpips: vgg (default), alex or squeeze; frozen: a class or one of `BUILDERS` (hosts/instantiate)
    layers: tuple[str, ...] = ()  # frozen: module paths whose outputs are compared

    def __post_init__(self) -> None:
        if self.kind not in ("none", "lpips", "frozen"):
            raise ValueError(f"kind must be one of none, lpips, frozen, got {self.kind!r}")
        if not self.weight >= 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")
        if 0 < len(self.sha256) < 8:
            raise ValueError(f"sha256 must have 8 digits or more, got {self.sha256!r}")


def build_perceptual(recipe: PerceptualRecipe, *, allow: Sequence[str] = ()) -> nn.Module | None:
    """The recipe's distance, frozen, in eval mode; (b 3 h w, b 3 h w) in [-1, 1] -> scalar. None where it has none.

    Raises FileNotFoundError where the weights are not there and ValueError where their hash is another.
    """
    if recipe.kind == "none" or recipe.weight == 0:
        return None
    built = lpips(recipe) if recipe.kind == "lpips" else FeatureDistance.load(recipe, allow=allow)
    return built.eval().requires_grad_(False)


def lpips(recipe: PerceptualRecipe) -> nn.Module:
    """LPIPS by torchmetrics, its network's weights from torchvision's own file; the linear layers are its own."""
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError as error:
        raise ImportError(f'LPIPS needs torchmetrics ({error}): pip install "tavq-plugin[eval]"') from error
    name = recipe.network or "vgg"
    if name not in FILES:
        raise ValueError(f"perceptual.network is {name!r}: of LPIPS there are {', '.join(FILES)}")
    state = checked_weights(recipe, f"torchvision's {FILES[name]}")
    module = _LPIPS(net=name, pnet_rand=True)
    for key, parameter in module.net.named_parameters():
        place = f"features.{key.split('.', 1)[1] if name != 'squeeze' else key.split('.', 2)[2]}"
        if place not in state or state[place].shape != parameter.shape:
            raise ValueError(f"{recipe.path} does not hold {place} of {name}: give torchvision's {FILES[name]}")
        parameter.data.copy_(state[place])
    return _Mean(module)


class _Mean(nn.Module):
    """LPIPS of each image, averaged."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.module(one, other).float().mean()


class FeatureDistance(nn.Module):
    """Squared distance of a frozen network's feature maps, normalised at each place (as LPIPS, without its weights).

    Mean over places, summed over channels, mean over layers. Images in [-1, 1] are brought to ImageNet's scale.
    """

    def __init__(self, network: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.layers = network, layers
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, recipe: PerceptualRecipe, *, allow: Sequence[str] = ()) -> FeatureDistance:
        """The recipe's network with the recipe's weights, strictly."""
        if not recipe.network or not recipe.layers:
            raise ValueError(
                "perceptual.kind=frozen needs perceptual.network, as torchvision.models.squeezenet1_0, and "
                "perceptual.layers, module paths in it, as [features.3, features.7, features.12]"
            )
        state = checked_weights(recipe, "its state dict")
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


def checked_weights(recipe: PerceptualRecipe, wanted: str) -> dict[str, Tensor]:
    """The state dict in the recipe's file, read without running anything in it, once its hash is right."""
    path = Path(recipe.path)
    if not recipe.path or not path.is_file():
        raise FileNotFoundError(
            f"perceptual.path is {recipe.path!r}, and no such file is there: give {wanted}, "
            "--set perceptual.path=FILE, or go without, --set perceptual.kind=none"
        )
    digest = sha256_of(path)
    if not digest.startswith(recipe.sha256.lower()):
        raise ValueError(
            f"{path} has sha256 {digest} and perceptual.sha256 is {recipe.sha256}: fetch the file again, or correct "
            "the setting if you trust this one"
        )
    return torch.load(path, map_location="cpu", weights_only=True)
