"""What a run tells whoever watches it."""

from __future__ import annotations

from sbnbench.model import Block, Plan, Record


class Observer:
    """Hears what a run does; does nothing with it. Subclasses show it."""

    def started(self, plan: Plan, todo: list[Block]) -> None: ...

    def preparing(self, what: str, done: float, total: float) -> None: ...

    def block_started(self, block: Block) -> None: ...

    def block_progress(self, block: Block, fraction: float) -> None: ...

    def block_done(self, block: Block, records: list[Record], seconds: float) -> None: ...
