"""Launch choices, occupancy and what is said where the backend cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sbnbench_kernels.triton as backend
from sbnbench.errors import Unavailable, UnknownName
from sbnbench_kernels.contract import State
from sbnbench_kernels.traffic import traffic
from sbnbench_kernels.triton.gpus import GPUS, find_gpu, occupancy, predicted_seconds

pytest.importorskip("triton")

from sbnbench_kernels.triton import heuristics
from sbnbench_kernels.triton.layout import Layout, dense

LAYOUTS = st.builds(
    Layout,
    rows=st.integers(1, 512),
    channels=st.integers(1, 2048),
    spatial=st.lists(st.integers(1, 64), max_size=3).map(tuple),
    channels_last=st.booleans(),
    itemsize=st.sampled_from([2, 4]),
)


@given(LAYOUTS, st.integers(1, 4))
def test_a_reduction_covers_every_value_once(layout, segments):
    seg_len = layout.rows * layout.map_size
    cut = heuristics.reduce_launch(layout, seg_len, segments)
    assert (cut.subs - 1) * cut.sub_len < seg_len <= cut.subs * cut.sub_len
    assert cut.subs == 1 or cut.sub_len % cut.values == 0
    assert cut.values * cut.channels <= 2048
    assert cut.num_warps in (1, 2, 4, 8)
    if cut.subs > 1 and layout.vectors and not layout.channels_last:
        assert cut.sub_len % layout.unit == 0


@given(LAYOUTS)
def test_a_pass_covers_every_value(layout):
    p = heuristics.pass_launch(layout)
    tile = p.vectors * p.width
    assert p.width * layout.itemsize == 16
    if p.mode == 0:
        assert layout.map_size % p.width == 0
        assert not layout.channels_last
        assert p.programs(layout) * tile >= layout.numel
    else:
        assert (p.programs(layout) - 1) * tile < layout.numel <= p.programs(layout) * tile
    assert (p.mode == 2) == (layout.inner % p.width != 0)


def test_micro_batches_take_one_launch_each_way():
    from sbnbench_kernels.triton import cases
    from sbnbench_kernels.triton.box_ops import BatchNorm, FeatureSampling

    fs = FeatureSampling(eps=1e-5, ratio=1 / 16, redraw=1, position="fixed", backward="sampled")
    for op in (BatchNorm(eps=1e-5), fs):
        for shape in ((1, 64, 28, 28), (4, 512, 7, 7), (2, 256, 14, 14), (4, 128, 56, 56)):
            launches = cases.record(op, shape, "bfloat16", "contiguous")
            assert [x.name for x in launches] == ["fused_forward", "fused_backward"]


def test_large_batches_fill_the_device():
    from sbnbench_kernels.triton import cases
    from sbnbench_kernels.triton.box_ops import BatchNorm

    for format in cases.FORMATS:  # noqa: A001
        launches = cases.record(BatchNorm(eps=1e-5), (128, 32, 112, 112), "bfloat16", format)
        names = [x.name for x in launches]
        assert names == [
            "box_moments", "finish_moments", "affine",
            "box_gradients", "finish_gradients", "affine_gradient",
        ]  # fmt: skip
        assert all(x.programs >= 500 for x in launches if not x.name.startswith("finish"))


def test_layouts():
    x = torch.empty(2, 3, 4, 5)
    assert not dense(x)[1].channels_last
    last = x.contiguous(memory_format=torch.channels_last)
    assert dense(last)[1].channels_last
    assert dense(last)[0] is last
    assert dense(torch.empty(2, 3))[1].channels_last
    assert dense(torch.empty(2, 3, 1, 1))[1].channels_last
    copied, layout = dense(x[:, :, ::2])
    assert copied.is_contiguous()
    assert layout.spatial == (2, 5)
    line = torch.empty(2, 7, 16).transpose(1, 2)
    assert dense(line)[1].channels_last
    assert dense(line)[0] is line


def test_occupancy():
    assert occupancy("sm_90", 32, 0, 4).programs == 16
    assert occupancy("sm_90", 64, 1024, 4).share == 0.5
    assert occupancy("sm_90", 65, 0, 4).limit == "registers"
    assert occupancy("sm_90", 65, 0, 4).warps == 28  # 72 registers a thread, 2304 a warp
    assert occupancy("sm_80", 16, 60 * 1024, 4) == occupancy("sm_80", 16, 60 * 1024 - 5, 4)
    assert occupancy("sm_80", 16, 60 * 1024, 4).programs == 2
    assert occupancy("sm_80", 16, 60 * 1024, 4).limit == "shared memory"
    assert occupancy("sm_90", 16, 0, 1).limit == "programs"
    with pytest.raises(UnknownName, match="sm_90"):
        occupancy("sm_91", 32, 0, 4)


def test_predicted_time_is_bytes_over_bandwidth():
    moved = traffic("bn", {}, (32, 64, 56, 56), "bfloat16", "fwd")
    h100 = find_gpu("h100-sxm")
    assert predicted_seconds(moved, h100) == pytest.approx(3 * 32 * 64 * 56 * 56 * 2 / 3.35e12)
    assert all(predicted_seconds(moved, gpu) > 1e-7 for gpu in GPUS.values())
    assert find_gpu("h100") is h100
    with pytest.raises(UnknownName, match="h100"):
        find_gpu("h100-smx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_cpu_is_refused_with_reason_and_remedy(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend.availability.cache_clear()
    reason = backend.availability()
    assert reason is not None
    assert "no CUDA device" in reason
    op = backend.BatchNorm(eps=1e-5)
    with pytest.raises(Unavailable, match=r"this one is on cpu; use the backend aten"):
        op.forward(torch.ones(2, 3), None, None, State())


def test_old_gpus_and_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert "7.5; the kernels need 8.0" in str(backend.too_old(7))
    monkeypatch.setattr(sys, "platform", "darwin")
    backend.missing.cache_clear()
    try:
        assert "no wheel for darwin" in str(backend.missing())
        with pytest.raises(Unavailable, match="no wheel"):
            backend.GroupNorm  # noqa: B018
    finally:
        backend.missing.cache_clear()


def test_without_triton_the_package_still_imports():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'triton' else find(n, *a)\n"
        "import sbnbench_kernels.triton as t\n"
        "from sbnbench.errors import Unavailable\n"
        "assert 'pip install' in t.availability()\n"
        "try:\n    t.BatchNorm\n"
        "except Unavailable as e:\n    assert 'pip install' in str(e)\n"
        "else:\n    raise SystemExit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
