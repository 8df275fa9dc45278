"""The digits network embeds each label once where all samples share a noise level: the same numbers as each its own."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

from bench.checkpoints import load
from bench.checkpoints.base import replica
from bench.checkpoints.digits_net import CLASSES, TABLE, DigitsMLP
from bench.distilled import SHIPPED, open_distilled, shipped
from distill.denoising import Preconditioned, distinct

CPU = torch.device("cpu")
FEW, MANY = TABLE, 3 * TABLE


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    return replica(load("digits").network, CPU, dtype)


def inputs(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(count)
    x = 3 * torch.randn(count, 1, 8, 8, generator=g, dtype=dtype)
    return x, torch.randint(CLASSES + 1, (count,), generator=g)


def one(level: float, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((), level, dtype=dtype).expand(count)


def embedded(D: nn.Module, t: Tensor, count: int, **more: Tensor) -> int:
    """Rows that the first block embeds in a call."""
    seen: list[int] = []
    x, y = inputs(count)
    with D.get_submodule("network.blocks.0.emb").register_forward_hook(
        lambda _, given, out: seen.append(len(given[0]))
    ):
        D(x, t, y=y, **more)
    return seen[0]


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, MANY])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_a_shared_level_gives_the_numbers_of_equal_levels(count: int, dtype: torch.dtype, tolerance: float) -> None:
    D, (x, y) = network(dtype), inputs(count, dtype)
    for level in (0.002, 0.7, 80.0):
        shared, each = D(x, one(level, count, dtype), y=y), D(x, torch.full((count,), level, dtype=dtype), y=y)
        assert (shared - each).abs().max() <= tolerance * max(1, each.abs().max())


def test_each_sample_keeps_its_own_level_and_label() -> None:
    D, (x, y) = network(torch.float64), inputs(MANY, torch.float64)
    levels = torch.linspace(0.01, 20, MANY, dtype=torch.float64)
    together = D(x, levels, y=y)
    for i in (0, 7, MANY - 1):
        alone = D(x[i : i + 1], levels[i : i + 1], y=y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-13)
    shuffled = torch.randperm(MANY, generator=torch.Generator().manual_seed(0))
    t = one(0.7, MANY, torch.float64)
    torch.testing.assert_close(D(x[shuffled], t, y=y[shuffled]), D(x, t, y=y)[shuffled], rtol=0, atol=1e-13)


def test_labels_are_embedded_once_for_many_samples_at_one_level_alone() -> None:
    D, told = network(), torch.ones(MANY, 5)
    assert embedded(D, one(0.7, MANY), MANY) == CLASSES + 1
    assert embedded(D, one(0.7, FEW), FEW) == FEW  # of few samples, each its own is quicker
    assert embedded(D, torch.full((MANY,), 0.7), MANY) == MANY
    assert embedded(D, one(0.7, MANY), MANY, augment=told) == MANY


def test_what_is_told_beside_the_label_is_each_sample_s_own() -> None:
    D, (x, y) = network(torch.float64), inputs(MANY, torch.float64)
    a = torch.randn(MANY, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = torch.full((MANY,), 0.7, dtype=torch.float64)
    shared, each = D(x, one(0.7, MANY, torch.float64), y=y, augment=a), D(x, levels, y=y, augment=a)
    torch.testing.assert_close(shared, each, rtol=0, atol=1e-13)
    assert (each - D(x, levels, y=y)).abs().max() > 1e-2


def test_a_scale_that_is_an_input_is_each_sample_s_own() -> None:
    found = (open_distilled(SHIPPED / name, load("digits")) for name in shipped())
    student = replica(next(s for s in found if s.scale_as_input).network, CPU, torch.float64)
    x, y = inputs(MANY, torch.float64)
    w = torch.linspace(1, 4, MANY)
    shared = student(x, one(0.7, MANY, torch.float64), y=y, w=w)
    each = student(x, torch.full((MANY,), 0.7, dtype=torch.float64), y=y, w=w)
    torch.testing.assert_close(shared, each, rtol=0, atol=1e-13)
    assert (shared - student(x, one(0.7, MANY, torch.float64), y=y, w=w.flip(0))).abs().max() > 1e-3


def test_gradients_and_tangents_are_those_of_equal_levels() -> None:
    torch.manual_seed(0)
    D, (x, y) = Preconditioned(DigitsMLP(32, 48, 2), 0.7).double(), inputs(MANY, torch.float64)
    for p in D.parameters():
        nn.init.normal_(p, std=0.2)
    grads = []
    for t in (one(0.7, MANY, torch.float64), torch.full((MANY,), 0.7, dtype=torch.float64)):
        D.zero_grad()
        D(x, t, y=y).pow(2).sum().backward()
        grads.append([p.grad.clone() for p in D.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
    at, along = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    tangents = [
        jvp(lambda t, spread=spread: D(x, spread(t), y=y), (at,), (along,))[1]
        for spread in (lambda t: t.expand(MANY), lambda t: t.repeat(MANY))
    ]
    torch.testing.assert_close(*tangents, rtol=1e-10, atol=1e-10)
    assert tangents[0].abs().max() > 1e-3


def test_the_stride_tells_not_the_numbers() -> None:
    assert distinct(torch.ones(7)).shape == (7,)
    assert distinct(torch.ones(()).expand(7)).tolist() == [1.0]


def test_it_compiles_in_one_piece_for_shared_and_own_levels() -> None:
    D, (x, y) = network(), inputs(MANY)
    fast = torch.compile(D, backend="aot_eager", fullgraph=True, dynamic=False)
    for t in (one(0.7, MANY), torch.linspace(0.1, 9, MANY)):
        torch.testing.assert_close(fast(x, t, y=y), D(x, t, y=y), rtol=1e-5, atol=1e-5)
