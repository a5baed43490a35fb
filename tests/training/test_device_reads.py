"""Between two rows of the history no step reads the device; what is not finite is found at the next read."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from helpers.toy_corpus import corpus, recipe
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tavq_plugin.training import fit
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.loop import TrainingLoop
from tavq_plugin.training.unread_losses import AT_MOST, UnreadLosses

pytest.importorskip("taming")
Accelerator = pytest.importorskip("accelerate").Accelerator
EVERYTHING = dict(
    steps=9, batch_size=4, accumulation=2, ema=0.5, flip=True, checkpoint_every=0, diagnose_every=0,
    adversarial={"start": 6, "width": 4, "layers": 1},
    start={"settle_share": 0.25, "revive_every": 2, "revive_below": 0.9},  # codes are started in step 2, which is read
)  # fmt: skip
OPERATIONS = {"_local_scalar_dense", "item", "nonzero", "bincount", "masked_select", "is_nonzero", "equal", "_unique2"}
METHODS = {"tolist", "item", "__bool__", "__float__", "__int__", "__index__", "cpu", "nonzero"}


class Operations(TorchDispatchMode):
    """Notes the operations, also those of a backward pass, that make a GPU wait."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        if name in OPERATIONS or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Notes the methods that read a tensor; on a CPU `tolist` is no operation."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in METHODS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def reads():
    """The names of what reads a device in a block."""
    seen = []
    with ExitStack() as stack:
        stack.enter_context(Operations(seen))
        stack.enter_context(Methods(seen))
        yield seen


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_between_two_rows_reads_nothing(precision):
    loop = TrainingLoop(recipe(**EVERYTHING, precision=precision), corpus(), Accelerator(cpu=True))
    for number in range(EVERYTHING["steps"]):
        due = number % 3 == 2
        with reads() as seen:
            row = loop.step(read=due)
        assert ("tolist" in seen and "pixel" in row) if due else (not seen and "pixel" not in row), (number, seen)
        assert row["step"] == number and row["seconds"] > 0
    assert {"adversarial", "discriminator", "usage3"} <= row.keys()
    loop.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_between_two_rows_does_not_wait_for_the_gpu():
    loop = TrainingLoop(recipe(**{**EVERYTHING, "start": {"revive_every": 2}}), corpus(), Accelerator())
    for _ in range(4):
        loop.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            loop.step(read=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loop.step()["pixel"] > 0
    loop.close()


def test_rows_are_those_of_a_run_that_reads_every_step(tmp_path):
    seen = []
    often, seldom = (
        fit("vqgan", recipe(steps=7, log_every=every, diagnose_every=0), corpus(), tmp_path / str(every),
            progress=lambda done, row: seen.append(row["step"]))
        for every in (1, 3)
    )  # fmt: skip
    expected, found = (
        [{name: value for name, value in row.items() if name not in ("seconds", "plugin_share")} for row in run.history]
        for run in (often, seldom)
    )
    assert found == [expected[step] for step in (2, 5, 6)] and {"pixel", "usage3"} <= found[0].keys()
    assert seen == [*range(7), 0, 0, 2, 2, 2, 5, 6]  # the latest row that was read


@pytest.mark.parametrize(("every", "saved"), [(3, 3), (5, None)], ids=["found by a row", "found by a checkpoint"])
def test_a_term_that_is_not_finite_is_named_with_its_step_at_the_next_read(tmp_path, every, saved):
    settings, done = recipe(steps=8, log_every=6, checkpoint_every=every, options={"broken_at": 4}), []
    with pytest.raises(FloatingPointError, match=r"^pull is nan at step 4 \(pixel "):
        fit("noisy", settings, corpus(), tmp_path / "run", progress=lambda number, row: done.append(number))
    assert done == [1, 2, 3, 4, 5]
    latest = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert (latest[0]["number"] if latest else None) == saved


def test_unread_losses_of_very_many_steps_are_read_in_between():
    losses = UnreadLosses()
    with pytest.raises(FloatingPointError, match="pixel is inf at step 3"):
        for number in range(AT_MOST + 2):
            losses.add(number, ["pixel"], torch.tensor([float("inf") if number == 3 else 0.5]))
    losses = UnreadLosses()
    for number in range(AT_MOST + 2):
        losses.add(number, ["pixel"], torch.tensor([float(number)]))
        losses.add(number, ["pixel"], torch.tensor([number + 1.0]))
    assert losses.read() == {"pixel": AT_MOST + 1.5} and losses.read() == {}
