"""sbnbench: is a sampled normalizer faster on your machine, is that real, and how wrong is it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbnbench.api import load, run
    from sbnbench.model import Contender, Normalizer, Param, Workload

__version__ = "0.1.0"
__all__ = ["Contender", "Normalizer", "Param", "Workload", "__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `sbnbench --help` must stay quick.
    if name in ("run", "load"):
        from sbnbench import api

        return getattr(api, name)
    if name in ("Contender", "Normalizer", "Param", "Workload"):
        from sbnbench import model

        return getattr(model, name)
    raise AttributeError(f"module 'sbnbench' has no attribute {name!r}")
