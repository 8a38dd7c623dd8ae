"""Launch choices: frozen, pure, the same on every device and in every run, so that a measurement
is of one program. Nothing is tuned at run time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sbnbench_kernels.triton.layout import Layout


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class ReduceLaunch:
    """How a box is cut: tiles of `values` × `channels`, `subs` parts of `sub_len` a segment."""

    values: int
    channels: int
    subs: int
    sub_len: int
    num_warps: int


@dataclass(frozen=True)
class PassLaunch:
    """How a whole tensor is passed over: tiles of `vectors` × `width`; `mode` as in elementwise."""

    mode: int
    vectors: int
    width: int
    even: bool
    num_warps: int

    def programs(self, layout: Layout) -> int:
        """Programs of the pass."""
        tile = self.vectors * self.width
        if self.mode == 0:
            return layout.rows * layout.channels * math.ceil(layout.map_size / tile)
        return math.ceil(layout.numel / tile)


@dataclass(frozen=True)
class Heuristics:
    """The numbers behind the choices, each with its reason."""

    tile: int = 2048
    """Values in flight a program of a reduction: 16 a lane at 4 warps, two accumulators each,
    under 100 registers, so that at least 5 programs share a multiprocessor."""
    narrow: int = 1024
    """The same where the contiguous size allows no 16-byte accesses: each value of a lane then
    has an address of its own to hold."""
    scattered: int = 512
    """The same where values are not side by side (patches, single positions): 4 a lane, each with
    addresses of its own to hold."""
    programs: int = 1024
    """Programs that fill every device of today (148 multiprocessors × 6), independent of the
    device so that sums are formed in the same order everywhere."""
    shortest_tiles: int = 2
    """Tiles a part holds at least: below that the final merge over lanes is the work."""
    row_bytes: int = 64
    """Channels-last: bytes of channels side by side in a tile: two sectors of DRAM."""
    resident: int = 4096
    """Values of a tile that one program keeps in registers from the statistics to the result: 16
    a lane at 8 warps, which leaves room for two tensors in the backward."""
    fused: int = 32768
    """Values of a program's channels up to which it passes twice over them: a program of four
    warps moves about 20 GB/s, so they cost it the 4 µs or so that two more launches would."""
    sector: int = 32
    """Channels-last: bytes of channels side by side of a fused program: a sector of DRAM, the
    least that is fetched, so that there are as many programs as can be."""
    vectors: int = 256
    """Vectors a program of an element-wise pass: two a thread at 4 warps, so that two
    independent 16-byte loads are in flight."""
    finish_tile: int = 1024
    """Entries of a table of parts in flight while parts are merged."""


DEFAULT = Heuristics()


def reduce_launch(
    layout: Layout,
    seg_len: int,
    segments: int = 1,
    scattered: bool = False,
    sums: int = 2,
    h: Heuristics | None = None,
) -> ReduceLaunch:
    """For `segments` segments of `seg_len` values a channel each.

    Tiles follow the contiguous axis; short segments take several channels. A segment is split
    only as far as programs are short of `programs`. With more than two `sums`, or values kept
    beside them, a lane holds fewer.
    """
    h = h or DEFAULT
    if sums > 2:
        h = replace(h, tile=max(h.tile // 2, 1), narrow=max(h.narrow // 2, 1))
    if layout.channels_last:
        channels = min(power_of_two(layout.channels), h.row_bytes // layout.itemsize)
        values = min(power_of_two(seg_len), h.tile // channels)
    else:
        tile = h.scattered if scattered else h.tile if layout.vectors else h.narrow
        values = min(power_of_two(seg_len), tile)
        channels = min(power_of_two(layout.channels), max(1, tile // 4 // values))
    programs = segments * math.ceil(layout.channels / channels)
    tiles = math.ceil(seg_len / values)
    subs = max(1, min(h.programs // programs, tiles // h.shortest_tiles))
    # Whole tiles a part, so that parts start where vectors do.
    sub_len = math.ceil(tiles / subs) * values if subs > 1 else seg_len
    lane = 4 if scattered or sums > 4 else 8 if sums > 2 or not layout.vectors else 16
    num_warps = warps(values * channels, lane)
    return ReduceLaunch(values, channels, math.ceil(seg_len / sub_len), sub_len, num_warps)


def pass_launch(layout: Layout, h: Heuristics | None = None) -> PassLaunch:
    """Vectors of 16 bytes; the plane mode where a map holds at least a tile of them."""
    h = h or DEFAULT
    width = 16 // layout.itemsize
    vectors = h.vectors
    aligned = layout.vectors
    if aligned and not layout.channels_last and layout.map_size >= vectors * width:
        mode = 0
    else:
        mode = 1 if aligned else 2
    return PassLaunch(mode, vectors, width, layout.numel % width == 0, max(1, vectors // 64))


def warps(values: int, lane: int) -> int:
    """Warps so that a lane holds about `lane` values: 1, 2, 4 or 8."""
    return min(8, max(1, power_of_two(values // (32 * lane))))


def finish_launch(channels: int, parts: int, h: Heuristics | None = None) -> tuple[int, int]:
    """(rows, channels) of a tile over a table of parts. Few channels a program: merging is
    latency-bound and wants programs."""
    h = h or DEFAULT
    block = min(power_of_two(channels), 32)
    return min(power_of_two(parts), max(1, h.finish_tile // block)), block


@dataclass(frozen=True)
class FusedLaunch:
    """One launch for everything: tiles of `values` × `channels`; `resident` where one tile is
    all that a program has."""

    values: int
    channels: int
    resident: bool
    num_warps: int

    def box_values(self, total: int, scattered: bool, h: Heuristics | None = None) -> int:
        """Values of a tile of a sample of `total` values."""
        h = h or DEFAULT
        tile = max(1, h.scattered // self.channels) if scattered else self.values
        return min(tile, power_of_two(total))


def fused_launch(
    layout: Layout,
    seg_len: int,
    whole: bool,
    located: bool = False,
    extra: bool = False,
    h: Heuristics | None = None,
) -> FusedLaunch | None:
    """For segments of `seg_len` values a channel, all of them sampled where `whole`; None where
    several launches are the better choice. `located`: each value is looked up in the sample, for
    which a lane needs addresses of its own. `extra`: there is a residual or a second sample. At 16
    values a lane ptxas spills then; twice as many where a tile is kept (a program's registers are
    the same), half as many elsewhere."""
    h = h or DEFAULT
    lean = located or not layout.vectors
    tile = h.narrow if lean else h.tile
    if layout.channels_last:
        channels = min(power_of_two(layout.channels), h.sector // layout.itemsize)
    else:
        channels = min(power_of_two(layout.channels), max(1, tile // 4 // power_of_two(seg_len)))
    resident = whole and power_of_two(seg_len) * channels <= h.resident
    if not resident and seg_len * channels > h.fused:
        return None
    values = power_of_two(seg_len) if resident else min(power_of_two(seg_len), tile // channels)
    lane = 8 if lean else 16
    if extra:
        lane = 32 if resident else 8
    return FusedLaunch(values, channels, resident, warps(values * channels, lane))
