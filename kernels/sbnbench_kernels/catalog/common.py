"""Parameters that many normalizers have."""

from __future__ import annotations

from sbnbench.model import Param

EPS = Param("eps", "float", 1e-5, "ε, added to the variance under the root", low=1e-12, high=1.0)
RATIO = Param("ratio", "ratio", 1 / 16, "share of the values that estimates the statistics")
REDRAW = Param("redraw", "int", 1, "a new draw every so many training steps; 0: never", low=0)
POSITION = Param(
    "position",
    "choice",
    "per-sample",
    "where a patch lies: at random in each sample, at one random place in all of them, or fixed in "
    "the centre",
    choices=("per-sample", "shared", "fixed"),
)
BETA = Param("beta", "float", 0.5, "weight of the virtual rows in the mixture", low=0.0, high=1.0)
NUM_VIRTUAL = Param("num_virtual", "int", 1, "virtual rows at the end of the batch", low=1)
BACKWARD = Param(
    "backward",
    "choice",
    "exact",
    "exact: through the statistics, as autograd; sampled: sums over the sample alone; "
    "detached: statistics taken as constants",
    choices=("exact", "sampled", "detached"),
)

NO_ATEN = {"aten": "PyTorch has no fused operator for it"}
EAGER_ALONE = {
    **NO_ATEN,
    "inductor": "what it carries from call to call steers the next one on the host",
    "triton": "what it carries from call to call steers the next one on the host",
}
