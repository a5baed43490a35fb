"""On a GPU: the same answers as on the CPU, nothing read back, one graph for batches of any lengths."""

import pytest
import torch
from helpers.generators import clustered

from tavq_plugin.losses import TextAlignment
from tavq_plugin.ot import solve
from tavq_plugin.ot.cuda_graph import GRAPHS, GraphCache
from tavq_plugin.ot.newton import maximise
from tavq_plugin.ot.semidual import Problem
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import Codes, Level, Units

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def problem(n=700, m=40, b=4):
    """Codes, units and a mask that leaves some of the units out, on the GPU."""
    x, y = (t.float().cuda() for t in clustered(b, n, m, 96, spread=0.5, repeated=True))
    mask = torch.arange(m, device="cuda") < torch.tensor([[m], [m // 2], [3], [0]][:b], device="cuda")
    return x, y, mask


def answer(x, y, mask, **options):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    result = solve(x, y, y_mask=mask, **options)
    return result, torch.autograd.grad(result.value.sum(), (x, y))


@pytest.mark.parametrize("n", [200, 700, 4096])
def test_the_graph_agrees_with_the_cpu(n):
    GRAPHS.graphs.clear()
    for b, m in ((4, 40), (4, 37), (3, 40), (4, 40)):
        x, y, mask = problem(n, m, b)
        result, grads = answer(x, y, mask)
        near, near_grads = answer(x.cpu(), y.cpu(), mask.cpu(), tolerance=1e-6)
        assert result.converged.all()
        torch.testing.assert_close(result.value.cpu(), near.value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.plan().cpu(), near.plan(), rtol=1e-2, atol=1e-6)
        for far, close in zip(grads, near_grads, strict=True):
            torch.testing.assert_close(far.cpu(), close, rtol=1e-2, atol=1e-5)
    assert len(GRAPHS.graphs) == 2  # one for batches of four, with any number of units, and one for three
    assert all(graph is not None for graph in GRAPHS.graphs.values())


def test_the_result_is_the_same_without_a_graph():
    part = torch.rand(2, 16, 700, device="cuda")
    masses = [torch.full((2, size), 1 / size, device="cuda") for size in (700, 16)]
    mask = torch.ones(2, 16, dtype=torch.bool, device="cuda")
    made = Problem.of(part, *masses, mask, torch.full((2,), 0.1, device="cuda"))
    answers = []
    for cache in (GraphCache(), GraphCache(max_cost_entries=0)):
        answers.append(maximise(made, adaptive=False, graphs=cache))
        assert len(cache.graphs) == (cache.max_cost_entries > 0)
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


def test_nothing_is_read_back():
    x, y, mask = problem()
    answer(x, y, mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result, _ = answer(x, y, mask)
        figures = [result.gap, result.transport_cost, result.gain, result.plan_entropy, result.dual_bound]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(part.isfinite().all() for part in figures)


def test_solve_works_inside_another_graph():
    x, y, mask = problem()
    expected = solve(x, y, y_mask=mask, schedule="fixed").value
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        solve(x, y, y_mask=mask, schedule="fixed")
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = solve(x, y, y_mask=mask, schedule="fixed").value
    graph.replay()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_failed_recording_still_computes_and_restores_the_stream():
    def reads_back(problem):
        problem.cost.sum().item()
        return problem.b, problem.epsilon

    stream = torch.cuda.current_stream()
    part = torch.rand(2, 16, 128, device="cuda")
    mask = torch.ones(2, 16, dtype=torch.bool, device="cuda")
    made = Problem.of(part, part[:, 0], part[:, :, 0], mask, part[:, 0, 0])
    potentials, _ = GraphCache().run(reads_back, made)
    assert torch.equal(potentials, made.b) and torch.cuda.current_stream() == stream


def test_the_adaptive_schedule_agrees_with_the_cpu():
    x, y, mask = problem()
    far, _ = answer(x, y, mask, schedule="adaptive")
    near, _ = answer(x.cpu(), y.cpu(), mask.cpu())
    assert far.converged.all()
    torch.testing.assert_close(far.value.cpu(), near.value, rtol=1e-5, atol=1e-6)


def test_float64_and_a_compiled_call_agree():
    x, y, mask = problem()
    result, _ = answer(x.double(), y.double(), mask)
    near, _ = answer(x.double().cpu(), y.double().cpu(), mask.cpu())
    torch.testing.assert_close(result.value.cpu(), near.value, rtol=1e-6, atol=1e-9)
    compiled = torch.compile(lambda x, y: solve(x, y, schedule="fixed").value, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), solve(x, y).value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("contrast_on", ["pooled", "transport"])
def test_the_loss_and_its_gradients_agree_with_the_cpu(contrast_on):
    draw = torch.Generator().manual_seed(0)
    codebook = torch.randn(64, 8, generator=draw)
    indices = [torch.randint(64, (3, side, side), generator=draw) for side in (16, 8, 4)]
    embeddings = torch.randn(3, 9, 12, generator=draw)
    mask = torch.arange(9) < torch.tensor([[9], [4], [0]])
    torch.manual_seed(0)
    align = TextAlignment(8, 12, contrast=0.1, contrast_on=contrast_on, transport=TransportSettings(tolerance=1e-6))

    def grads(device):
        table = codebook.to(device).requires_grad_()
        levels = []
        for index in indices:
            vectors = table[index.to(device)].movedim(-1, 1)
            levels.append(Level(vectors, vectors, index.to(device), vectors.new_zeros(())))
        texts = {name: Units(embeddings.to(device), mask.to(device)) for name in align.levels}
        loss = align.to(device)(Codes(tuple(levels), table.new_zeros(())), texts)
        found = torch.autograd.grad(loss, [table, *align.parameters()])
        return [part.cpu() for part in (loss.detach(), *found)]

    for far, near in zip(grads("cuda"), grads("cpu"), strict=True):
        torch.testing.assert_close(far, near, rtol=1e-2, atol=1e-4 * near.abs().max().item())
