"""The settings of a training run: frozen dataclasses, checked when they are made. Comments state the units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tavq_plugin.losses.alignment_settings import HEADS_RATE
from tavq_plugin.networks.perceptual_loss import PerceptualRecipe

YOUNGER = {"init": "", "flip": False, "images_on_gpu": 2.0}  # settings that older runs do not have → their default


def _above_zero(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(settings, name)}")


def _zero_or_more(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(settings, name)}")


def _one_of(settings: Any, name: str, known: Sequence[str]) -> None:
    if getattr(settings, name) not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(settings, name)!r}")


@dataclass(frozen=True)
class HostRecipe:
    """The tokenizer to train; in YAML, `host: small` is short for `host: {target: small}`."""

    target: str = "small"  #: the demo's VQGAN, or package.module.Class: a torch.nn.Module class of an allowed package
    params: dict[str, Any] = field(default_factory=dict)  #: arguments of the target
    wrap: dict[str, Any] = field(default_factory=dict)  #: arguments of `tavq_plugin.wrap`, such as taps or grad_to

    def __post_init__(self) -> None:
        if self.target != "small" and "." not in self.target:
            raise ValueError(f"target must be small, or a class such as package.module.Class, got {self.target!r}")


@dataclass(frozen=True)
class OptimizerRecipe:
    """Adam on the host, the added levels and the method's own parameters."""

    learning_rate: float = 1e-3  #: the peak, after `warmup`
    #: The second beta remembers squared gradients for about 1 / (1 - beta) steps. The large ones from the alignment's
    #: start must be forgotten before the end, or they shrink the last steps of the pixel losses.
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 20  #: optimizer steps over which the rate rises linearly
    schedule: str = "cosine"  #: after the warmup: "cosine", half a cosine down to 0, or "constant"
    method_rate: float = HEADS_RATE  #: learning rate of the method's own parameters, in units of learning_rate

    def __post_init__(self) -> None:
        _above_zero(self, "learning_rate", "method_rate")
        _zero_or_more(self, "warmup")
        _one_of(self, "schedule", ("cosine", "constant"))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers, 0 or more and below 1, got {self.betas}")


@dataclass(frozen=True)
class AdversarialRecipe:
    """The PatchGAN discriminator and its hinge losses."""

    weight: float = 0.8  #: 0 = no discriminator
    start: int = 10_000  #: optimizer steps before it takes part; not built if the run has no more steps than this
    adaptive: bool = True  #: multiply by the ratio of gradient norms at the decoder's last layer (VQGAN, eq. 7)
    layers: int = 3  #: strided convolutions
    width: int = 64  #: channels of the first convolution
    rate: float = 1.0  #: its learning rate, in units of the optimizer's

    def __post_init__(self) -> None:
        _zero_or_more(self, "weight", "start")
        _above_zero(self, "layers", "width", "rate")


@dataclass(frozen=True)
class StartRecipe:
    """How the host's codebook starts, and how its unused codes are restarted."""

    #: share of the run without quantization, at its start; codes are then put on latents; 0 with `init`
    settle_share: float = 0.0
    revive_every: int = 0  #: optimizer steps between restarts of hardly used codes; 0 = never
    revive_below: float = 0.1  #: a code is hardly used below this share of the mean use
    revive_share: float = 0.8  #: share of the run after which no code is restarted

    def __post_init__(self) -> None:
        _zero_or_more(self, "revive_every", "revive_below", "revive_share")
        if not 0 <= self.settle_share < 1:
            raise ValueError(f"settle_share must be 0 or more and below 1, got {self.settle_share}")


@dataclass(frozen=True)
class Recipe:
    """All settings of one training run except its data; `to_dict` gives what is saved with its results.

    `batch_size` counts the images of an optimizer step over all processes and passes, so a run does not depend on the
    number of either, except that gradients are balanced (method `tavq`) within each pass of each process.
    """

    host: HostRecipe = HostRecipe()
    init: str = ""  #: start from trained weights: a checkpoint's file, or a finished run's folder; "" = from scratch
    resolution: int = 64  #: pixels per side
    steps: int = 500  #: optimizer steps
    batch_size: int = 16  #: images of an optimizer step
    accumulation: int = 1  #: passes that a step's images are split into
    #: mirror half of each step's images, left to right; texts that say left or right are then wrong for them
    flip: bool = False
    images_on_gpu: float = 2.0  #: GB of training images, as bytes, that may stay on a GPU; 0 = copy each batch there
    precision: str = "no"  #: "no": float32; "bf16": autocast, but the quantizer and all losses stay in float32
    compile: str = "no"  #: "no", or a backend of torch.compile ("inductor") for the host's encoder and decoder
    seed: int = 0
    optimizer: OptimizerRecipe = OptimizerRecipe()
    ema: float = 0.0  #: the run ends with weights averaged by this decay; 0 = with its last weights
    codebook_loss_weight: float = 1.0  #: weight of the added levels' codebook and commitment loss
    perceptual: PerceptualRecipe = field(default_factory=PerceptualRecipe)
    adversarial: AdversarialRecipe = AdversarialRecipe()
    start: StartRecipe = StartRecipe()
    method: str = "vqgan"
    options: dict[str, Any] = field(default_factory=dict)  #: the method's own settings
    checkpoint_every: int = 500  #: optimizer steps; 0 = none before the end
    keep: int = 1  #: number of checkpoints kept
    log_every: int = 1  #: optimizer steps between rows of the history
    diagnose_every: int = 50  #: optimizer steps, at least, between rows with diagnostics of the codes; 0 = never
    tracker: str = "tensorboard"  #: "tensorboard" | "wandb" | "none"

    def __post_init__(self) -> None:
        _above_zero(self, "resolution", "steps", "batch_size", "accumulation", "keep", "log_every")
        _zero_or_more(self, "seed", "checkpoint_every", "diagnose_every", "codebook_loss_weight", "images_on_gpu")
        _one_of(self, "precision", ("no", "bf16"))
        _one_of(self, "tracker", ("tensorboard", "wandb", "none"))
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be 0 or more and below 1, got {self.ema}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide by accumulation={self.accumulation}")

    @property
    def settled(self) -> int:
        """Optimizer steps without quantization, before the first step with codes; none for a trained host."""
        return 0 if self.init else int(self.start.settle_share * self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain dicts and lists, for JSON and YAML; defaults of `YOUNGER` are left out."""
        found = _plain(asdict(self))
        return {name: value for name, value in found.items() if name not in YOUNGER or value != YOUNGER[name]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
