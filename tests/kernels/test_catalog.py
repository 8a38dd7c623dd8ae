"""The catalog: complete, consistent, and quick to read because torch stays out of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sbnbench.registry import build, load_target, make_contender, normalizers
from sbnbench_kernels.catalog import NORMALIZERS

BUILT_IN = [n.name for n in NORMALIZERS]


def test_the_family_and_its_peers_are_there():
    assert {"bn", "ns", "bs", "fs", "vdn", "bs+vdn", "fs+vdn", "gn", "ln", "in"} <= set(BUILT_IN)
    assert len(set(BUILT_IN)) == len(BUILT_IN)


def test_listing_imports_no_torch():
    code = "import sys, sbnbench.registry as r; r.normalizers(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults_are_within_their_bounds_and_everything_is_said(name):
    normalizer = normalizers()[name]
    for param in normalizer.params:
        assert param.check(param.default, name) == param.default
        assert param.help
    assert normalizer.title
    assert normalizer.formula
    assert normalizer.source
    assert "eager" in normalizer.backends or "eager" in normalizer.without
    assert not set(normalizer.backends) & set(normalizer.without)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_target_takes_every_parameter(name):
    for backend, target in normalizers()[name].backends.items():
        if backend not in ("eager", "aten"):
            continue
        assert callable(load_target(target))
        op = build(make_contender(name, backend, {}))
        assert callable(op.forward)
        assert callable(op.backward)


@pytest.mark.parametrize("name", [n.name for n in NORMALIZERS if n.backends])
def test_a_layer_keeps_what_is_listed(name):
    import torch

    from sbnbench.listing import collect
    from sbnbench_kernels.module import Norm

    layer = Norm(name, 32)
    layer(torch.randn(40, 32, 4, 4, requires_grad=True)).sum().backward()
    (entry,) = (e for e in collect("normalizers")["normalizers"] if e["name"] == name)
    assert set(layer.state_dict()) == set(entry["state"])
