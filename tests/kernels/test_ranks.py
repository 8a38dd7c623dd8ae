"""Positions and virtual rows of two gloo processes, alone and under DistributedDataParallel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sbnbench.errors import InvalidParameter
from sbnbench_kernels.convert import convert
from sbnbench_kernels.module import Norm

STEPS = 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(10 * step + rank))


def corners(layer: Norm, shape: tuple[int, ...]) -> torch.Tensor:
    seed, step = layer.now()
    (share,) = layer._op.sampler.draw(shape, seed, step, torch.device("cpu"))
    return share.part.corners


def _process(rank: int, file: str, out: str) -> None:
    early = Norm("fs", 8)  # before there is a process group
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found: dict[str, object] = {"early": corners(early, (8, 8, 7, 7))}
    compiled = torch.compile(Norm("fs", 8), backend="aot_eager", fullgraph=True)
    found["compiled"] = compiled(torch.ones(8, 8, 7, 7).cumsum(2).cumsum(3))
    for ranks in ("different", "same"):
        model = DistributedDataParallel(convert(net(), "fs", ranks=ranks))
        drawn = []
        for step in range(STEPS):
            drawn.append(corners(model.module[1], (8, 8, 7, 7)))
            model(batch(step, rank)).square().mean().backward()
        found[ranks] = torch.stack(drawn)
        found[f"{ranks} gradient"] = model.module[0].weight.grad
        model(batch(0, rank))  # broadcasts the averages of rank 0 before it
        found[f"{ranks} state"] = model.module.state_dict()
    model = DistributedDataParallel(convert(net(), "vdn", mean=[0.0] * 3, std=[1.0] * 3))
    seen: list[torch.Tensor] = []
    model.module[1].register_forward_hook(lambda layer, args, y: seen.append(args[0][-1].detach()))
    for step in range(STEPS):
        model(batch(step, rank)).square().mean().backward()
    found["virtual"] = torch.stack(seen)
    found["virtual averages"] = model.module[1].running_var
    torch.save(found, f"{out}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_process, (str(folder / "group"), str(folder)), nprocs=2)
    return [torch.load(Path(folder, str(rank))) for rank in range(2)]


@pytest.mark.slow
def test_ranks_draw_differently_or_alike(found):
    first, second = found
    assert torch.equal(first["same"], second["same"])
    for a, b in zip(first["different"], second["different"], strict=True):
        assert not torch.equal(a, b)
    assert torch.equal(first["different"], first["same"]), "the first rank draws as if alone"
    assert not torch.equal(first["early"], second["early"])
    assert not torch.equal(first["compiled"], second["compiled"])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["different", "same"])
def test_ddp_keeps_the_models_together(found, ranks):
    first, second = found
    assert torch.equal(first[f"{ranks} gradient"], second[f"{ranks} gradient"])
    assert first[f"{ranks} state"]["1.num_batches_tracked"] == STEPS + 1


@pytest.mark.slow
def test_virtual_rows_and_what_vdn_keeps_are_the_same_everywhere(found):
    first, second = found
    assert torch.equal(first["virtual"], second["virtual"])
    assert not torch.equal(first["virtual"][0], first["virtual"][1])
    assert torch.equal(first["virtual averages"], second["virtual averages"])


def test_a_choice_that_does_not_exist_is_told():
    with pytest.raises(InvalidParameter, match="different, same"):
        Norm("fs", 4, ranks="other")
