"""The changing state of a run, one optimizer step, and saving and restoring that state exactly."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.distributed import (
    gather_sharded,
    gather_state,
    is_sharded,
    load_module,
    load_optimizer,
    mark_synchronized,
)
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.methods.base import Method, drawn_from
from tavq_plugin.moved import old_names
from tavq_plugin.networks.perceptual_loss import build_perceptual
from tavq_plugin.training.adversarial import Adversary, PatchGAN
from tavq_plugin.training.build import build
from tavq_plugin.training.codebook_restarts import HostCodebookRestarts, count_codes, draw_latents
from tavq_plugin.training.compiled_parts import compile_parts
from tavq_plugin.training.ema import WeightAverage
from tavq_plugin.training.image_batches import ImageBatches
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.sampler import BatchSampler, rows_of_rank
from tavq_plugin.training.schedule import Phase
from tavq_plugin.training.step import TrainingStep, with_texts_on
from tavq_plugin.training.timer import StepTimer
from tavq_plugin.training.unread_losses import UnreadLosses

__getattr__ = old_names(__name__)  # names that were renamed


class TrainingLoop:
    """The changing state of a run after `number` optimizer steps."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        accelerator: Accelerator,
        *,
        allow: Sequence[str] = (),
        phase: Phase | None = None,  # default: the whole run
        built: tuple[Tokenizer, Method] | None = None,  # default: built from the recipe
    ) -> None:
        self.recipe, self.corpus, self.accelerator, self.allow = recipe, corpus, accelerator, allow
        self.phase = phase or Phase.whole(recipe)
        self.number = self.phase.first
        self.losses = UnreadLosses()
        sampler = BatchSampler(corpus.n_train, batch_size=recipe.batch_size, seed=recipe.seed)
        rows_of_rank(sampler(0), passes=recipe.accumulation, ranks=accelerator.num_processes, rank=0)
        self.tokenizer, self.method = built or build(recipe, corpus, allow=allow)
        perceptual = build_perceptual(recipe.perceptual, allow=allow) if self.method.perceptual else None
        if perceptual is not None:
            perceptual.to(accelerator.device)
        self.batches = ImageBatches(
            corpus.images[: corpus.n_train], sampler, accelerator.device,
            at_most=1e9 * recipe.images_on_gpu, flip=recipe.flip,
        )  # fmt: skip
        on_device = with_texts_on(accelerator.device, corpus)
        self.module = TrainingStep(self.tokenizer, self.method, on_device, perceptual, recipe, self.phase)
        self.model = accelerator.prepare(self.module)
        if isinstance(self.model, FullyShardedDataParallel):
            raise ValueError("this trainer shards by FSDP2: set fsdp_version: 2 in accelerate's configuration")
        if is_sharded(self.module):
            mark_synchronized(self.module)
        self.optimizer, self._plugin_share = self._build_optimizer()
        self.adversary = self._build_adversary()
        self.average = WeightAverage(self.module.parameters(), recipe.ema) if recipe.ema else None
        self.codebook = HostCodebookRestarts.from_recipe(recipe, self.tokenizer, accelerator, self.phase)
        self.timer = self.module.timer = StepTimer(self.tokenizer.hierarchy)
        self.compiled = None
        if recipe.compile != "no":
            self.compiled = compile_parts(
                self.tokenizer.adapter, recipe.compile, keeps_graph=self.adversary is not None
            )
        torch.manual_seed(recipe.seed + 7919 * accelerator.process_index + 104_729 * self.phase.first)
        self.module.train()

    def step(self, *, read: bool = True) -> dict[str, float]:
        """Make one optimizer step and return its row of the history.

        Without `read` the device is not waited for: the row has the number and the times alone, and loss terms that
        are not finite are found at the next step that is read, or by `refuse_broken`.

        Raises FloatingPointError, naming the terms, if a loss term since the latest row is not finite. Weights may have
        changed by then.
        """
        recipe, number, accelerator = self.recipe, self.number, self.accelerator
        settling = number < self.phase.first_coded
        if self.phase.settles and number == self.phase.first_coded:
            self._start_codes()
        self._set_rates()
        parts = self.batches.rows(
            number, passes=recipe.accumulation, ranks=accelerator.num_processes, rank=accelerator.process_index
        )
        active = self.adversary is not None and self.adversary.is_active(number) and not settling
        adversary = self.adversary if active else None
        used: list[Tensor] | None = None
        row: dict[str, float] = {}
        with self.timer.step():
            for i, (part, flipped) in enumerate(parts):
                with ExitStack() as stack:
                    if i < len(parts) - 1:
                        for model in [self.model, *([adversary.prepared] if adversary else [])]:
                            stack.enter_context(getattr(model, "no_sync", nullcontext)())  # only DDP has it
                    self._pass(part, self.batches.cut(part, flipped), settling, adversary)
                if not settling:
                    if read:
                        used = self._add_uses(used)
                    if self.codebook is not None:
                        self.codebook.count(self.module.last.codes)
            with self.timer.update(self._plugin_share):
                self.optimizer.step()
                self.optimizer.zero_grad()
            if adversary is not None:
                adversary.update()
            if not settling:
                with self.timer.in_plugin():
                    self.method.after_update(self.module.last)
                if self.codebook is not None:
                    self.codebook.after_update(number, self.module.last.codes)
            if self.average is not None and not settling:
                self.average.update()
            if read:  # within the step's time, as a GPU is waited for here
                row = {**self.losses.read(), **self._usage(used), **self._skipped()}
        self.number += 1
        return {"step": number, **row, **self._times()}

    def _start_codes(self) -> None:
        """Put the codes on latents of the training images, or let the method do it."""
        if self.codebook is not None:
            self.codebook.start(self.corpus)
        else:
            images, draw = self.corpus.images[: self.corpus.n_train], torch.Generator().manual_seed(self.recipe.seed)
            self.method.start_codes(draw_latents(self.tokenizer.adapter, images, draw, self.accelerator.device))

    def _pass(self, part: Tensor, images: Tensor, settling: bool, adversary: Adversary | None) -> None:
        """Forward and backward of one pass, generator first, then discriminator; its terms stay on the device."""
        reconstruction, terms = self.model(part, images, self.number, settling)
        logged = {}
        if adversary is not None:
            own = terms["pixel"] + terms.get("perceptual", 0.0)
            last = self.tokenizer.adapter.last_layer()
            with self._autocast():
                terms["adversarial"], logged["adaptive"] = adversary.generator_term(reconstruction, own, last)
                discriminator_loss = adversary.discriminator_loss(images, reconstruction)
            logged["discriminator"] = discriminator_loss.detach()
        values = terms | logged
        means = self._mean(torch.stack([value.detach().float() for value in values.values()]))
        self.losses.add(self.number, list(values), means)
        self.timer.backward(torch.stack(list(terms.values())).sum() / self.recipe.accumulation)
        if adversary is not None:
            (discriminator_loss / self.recipe.accumulation).backward()

    def _add_uses(self, used: list[Tensor] | None) -> list[Tensor] | None:
        """Add this pass to the use counts of each level's codes; None if the host has no codebook."""
        table = self.tokenizer.adapter.codebook()
        if table is None:
            return None
        codes = self.module.last.codes
        own = [len(cast(Tensor, codebook.weight)) for codebook in self.tokenizer.hierarchy.own]
        sizes = [*own, len(table)] if own else [len(table)] * len(codes.levels)
        counts = [count_codes(level.indices, k) for level, k in zip(codes.levels, sizes, strict=True)]
        return counts if used is None else [a + b for a, b in zip(used, counts, strict=True)]

    def _usage(self, used: list[Tensor] | None) -> dict[str, float]:
        """Percentage of its codebook that each level chose in the step's images, fine → coarse."""
        if used is None:
            return {}
        shares = [(self.accelerator.reduce(part) > 0).float().mean() for part in used]
        return {f"usage{i}": 100 * value for i, value in enumerate(torch.stack(shares).tolist(), 1)}

    def _skipped(self) -> dict[str, float]:
        """How often so far a balanced gradient was left out, as the host's own was 0 or not finite."""
        figures = getattr(self.method, "figures", None)
        if figures is None or not figures.names:
            return {}
        return {"skipped_gradients": figures.values("skipped").sum().item()}

    def _times(self) -> dict[str, float]:
        seconds, plugin = self.timer.steps.pop(), self.timer.plugin.pop()
        return {"seconds": seconds, "plugin_share": plugin / seconds}

    def _mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "mean") if self.accelerator.num_processes > 1 else value

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _build_optimizer(self) -> tuple[torch.optim.Optimizer, float]:
        """Adam, and the plug-in's share of the trainable parameters."""
        settings, own = self.recipe.optimizer, {id(p) for p in self.method.parameters()}
        learnt = [p for p in self.module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnt if id(p) not in own], "rate": 1.0},
            {"params": [p for p in learnt if id(p) in own], "rate": settings.method_rate},
        ]
        plugin = [*self.tokenizer.hierarchy.parameters(), *self.method.parameters()]
        share = sum(p.numel() for p in plugin) / sum(p.numel() for p in learnt)
        groups = [group for group in groups if group["params"]]
        return torch.optim.Adam(groups, lr=settings.learning_rate, betas=settings.betas, fused=True), share

    def _set_rates(self) -> None:
        """Set the learning rates of this step."""
        rate = self.phase.learning_rate(self.recipe.optimizer, self.number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        if self.adversary is not None:
            for group in self.adversary.optimizer.param_groups:
                group["lr"] = rate * self.recipe.adversarial.rate

    def _build_adversary(self) -> Adversary | None:
        recipe = self.recipe.adversarial
        if not self.method.adversarial or recipe.weight == 0 or recipe.start >= self.phase.last:
            return None
        last = self.tokenizer.adapter.last_layer()
        if recipe.adaptive and (last is None or gather_sharded(last) is not last):
            why = "shows no last layer" if last is None else "is sharded and hides its last layer"
            raise ValueError(
                f"this host {why}, which the adaptive weight of the adversarial loss needs: give "
                "adversarial.adaptive=false"
            )
        with drawn_from(self.recipe.seed):
            module = PatchGAN(layers=recipe.layers, width=recipe.width)
        if is_sharded(self.module):  # too small to shard
            prepared = DistributedDataParallel(module.to(self.accelerator.device))
        else:
            prepared = self.accelerator.prepare(module)
        settings = self.recipe.optimizer
        adam = torch.optim.Adam(module.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True)
        return Adversary(recipe, module, prepared, adam, self._mean)

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {"adversary": self.adversary, "average": self.average, "codebook": self.codebook}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, including the random streams of every process."""
        streams = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            streams["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        parts = {"model": self.module, "optimizer": self.optimizer, **self._parts}
        state = {name: gather_state(part.state_dict()) for name, part in parts.items()}
        return {"number": self.number, "last": self.phase.last, "streams": gather_object([streams]), **state}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.number = state["number"]
        load_module(self.module, state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        streams = state["streams"][self.accelerator.process_index % len(state["streams"])]
        torch.set_rng_state(streams["cpu"])
        if "cuda" in streams and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(streams["cuda"], self.accelerator.device)

    def refuse_broken(self) -> None:
        """Raise FloatingPointError if a loss or a weight is not finite, so that no such state is saved."""
        self.losses.read()
        names, weights = zip(*self.module.named_parameters(), strict=True)
        finite = torch.stack([gather_sharded(weight.isfinite().all()) for weight in weights]).tolist()
        if broken := [name for name, good in zip(names, finite, strict=True) if not good]:
            raise FloatingPointError(
                f"the weights {broken[0]} are not finite after step {self.number}: lower optimizer.learning_rate"
            )

    def finish(self) -> None:
        """End training: use the averaged weights, remove the hooks and what the method put on the host.

        Sharded weights are gathered on every process. Saved weights may be loaded afterwards.
        """
        if self.average is not None:
            self.average.apply()
        self.close()
        if is_sharded(self.module):
            state = gather_state(self.module.state_dict())
            self.tokenizer, self.method = build(replace(self.recipe, init=""), self.corpus, allow=self.allow)
            self.module = TrainingStep(self.tokenizer, self.method, self.corpus, None, self.recipe, self.phase)
            self.module.to(self.accelerator.device).load_state_dict(state)
        self.method.finish()
        self.module.eval()

    def close(self) -> None:
        """Remove the timer's hooks and what was compiled."""
        self.timer.close()
        if self.compiled is not None:
            self.compiled.remove()
