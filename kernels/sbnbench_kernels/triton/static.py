"""What the compiler makes of a kernel, without a GPU: registers, spills, shared memory and the
width of its memory accesses, from an ahead-of-time build for a named architecture.

The specialisation is the one that the launcher would make from the same arguments: an integer
of 1 becomes a constant, one that 16 divides and an aligned pointer say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import triton
from sbnbench_kernels.triton.launching import Launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
"""The opcode of a line of machine code, behind its address and predicate."""

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class KernelReport:
    """One kernel, as built for one architecture.

    Bytes are a program's for `shared` and a thread's for `local` (stack and spills). `loads` and
    `stores` are the widths in bits of the global accesses in the machine code with their counts;
    `instructions` counts the machine code by opcode.
    """

    name: str
    arch: str
    num_warps: int
    registers: int
    local: int
    spills: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]
    instructions: dict[str, int]

    @property
    def widest_load(self) -> int:
        return max(self.loads, default=0)

    @property
    def widest_store(self) -> int:
        return max(self.stores, default=0)


@dataclass(frozen=True)
class Source:
    """A kernel with its specialisation: what is compiled."""

    kernel: Any
    num_warps: int
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]

    def key(self, arch: str) -> str:
        """Content hash: the kernel's source with all it calls, its specialisation, the compiler."""
        parts = (
            self.kernel.cache_key, arch, self.num_warps, sorted(self.signature.items()),
            sorted((k, repr(v)) for k, v in self.constants.items()), self.divisible,
            triton.__version__,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def source_of(launch: Launch) -> Source:
    """The specialisation of a recorded launch."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    for param in launch.kernel.params:
        value = launch.arguments[param.name]
        if param.is_constexpr or value is None:
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = _POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
            if aligned and not param.do_not_specialize_on_alignment:
                divisible.append(param.name)
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        elif value == 1 and not param.do_not_specialize:
            signature[param.name], constants[param.name] = "constexpr", 1
        else:
            signature[param.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not param.do_not_specialize:
                divisible.append(param.name)
    return Source(launch.kernel, launch.num_warps, signature, constants, tuple(divisible))


def compile_source(source: Source, arch: str) -> Any:
    """Triton's compiled kernel for an architecture such as `sm_90`."""
    names = source.kernel.arg_names
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in source.divisible}
    constants = {(names.index(name),): value for name, value in source.constants.items()}
    ast = ASTSource(source.kernel, source.signature, constants, attrs)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return triton.compile(ast, target=target, options={"num_warps": source.num_warps})


def report(source: Source, arch: str, cache: Path | None = None) -> KernelReport:
    """The report of one build, read from `cache` where the same build was made before."""
    entry = cache / f"{source.key(arch)}.json" if cache else None
    if entry and entry.exists():
        found = json.loads(entry.read_text())
        for widths in ("loads", "stores"):
            found[widths] = {int(k): v for k, v in found[widths].items()}
        return KernelReport(**found)
    made = _examine(source.kernel.__name__, arch, compile_source(source, arch))
    if entry:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = entry.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(made)))
        part.replace(entry)
    return made


def _examine(name: str, arch: str, compiled: Any) -> KernelReport:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("cuobjdump", "-sass", file.name)
    found = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage))
    instructions: Counter[str] = Counter()
    widths: dict[str, Counter[int]] = {"LDG": Counter(), "STG": Counter()}
    for opcode in _OPCODE.findall(sass):
        base, *modifiers = opcode.split(".")
        instructions[base] += 1
        if base in widths:
            widths[base][_width(modifiers)] += 1
    return KernelReport(
        name=name,
        arch=arch,
        num_warps=compiled.metadata.num_warps,
        registers=int(found["REG"]),
        local=max(int(found["STACK"]), int(found["LOCAL"])),
        spills=instructions["LDL"] + instructions["STL"],
        shared=max(compiled.metadata.shared, int(found["SHARED"])),
        loads=dict(widths["LDG"]),
        stores=dict(widths["STG"]),
        instructions=dict(instructions),
    )


def _width(modifiers: list[str]) -> int:
    """Bits that one thread moves; 32 where the opcode names no size."""
    for modifier in modifiers:
        if modifier in ("64", "128", "256"):
            return int(modifier)
        if modifier in ("U8", "S8"):
            return 8
        if modifier in ("U16", "S16"):
            return 16
    return 32


def _tool(name: str, *arguments: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
