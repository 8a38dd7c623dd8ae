"""Names to lazily imported targets: built-ins, then what other packages register.

A third party declares an entry point in the group `sbnbench.normalizers`, `sbnbench.measures` or
`sbnbench.suites`. A plug-in that fails to load is reported by name and does not stop the rest.
Nothing here imports torch; a target "module:attr" is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import msgspec

from sbnbench.errors import DuplicateName, InvalidParameter, UnknownName, UsageError
from sbnbench.model import Contender, Normalizer

T = TypeVar("T")

BUILTIN_NORMALIZERS = "sbnbench_kernels.catalog:NORMALIZERS"


class Registry(Mapping[str, T], Generic[T]):
    """A mapping that refuses duplicates, suggests near names, and remembers what did not load."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.problems: dict[str, str] = {}
        self._items: dict[str, T] = {}
        self._providers: dict[str, str] = {}

    def add(self, name: str, item: T, provider: str) -> None:
        if name in self._items:
            raise DuplicateName(
                f"{self.kind} '{name}' of {provider} is already registered by "
                f"{self._providers[name]}; rename one of them"
            )
        self._items[name] = item
        self._providers[name] = provider

    def provider(self, name: str) -> str:
        return self._providers[name]

    def load_plugins(self, group: str, take: Callable[[EntryPoint, Any, str], None]) -> None:
        """Hand each entry point's object to `take`; keep the reason of each that fails."""
        for point in sorted(entry_points(group=group), key=lambda p: p.name):
            provider = point.dist.name if point.dist else point.value
            try:
                take(point, point.load(), provider)
            except Exception as error:  # a plug-in may fail in any way; the rest must go on
                self.problems[f"{point.name} ({provider})"] = f"{type(error).__name__}: {error}"

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise UnknownName(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@cache
def normalizers() -> Registry[Normalizer]:
    """Every normalizer that is installed, built-in ones first."""
    registry: Registry[Normalizer] = Registry("normalizer")
    for normalizer in load_target(BUILTIN_NORMALIZERS):
        registry.add(normalizer.name, normalizer, normalizer.provider)

    def take(point: EntryPoint, found: Any, provider: str) -> None:
        for item in found if isinstance(found, (list, tuple)) else (found,):
            if not isinstance(item, Normalizer):
                raise TypeError(f"{point.value} is a {type(item).__name__}, not a Normalizer")
            registry.add(item.name, msgspec.structs.replace(item, provider=provider), provider)

    registry.load_plugins("sbnbench.normalizers", take)
    return registry


def load_target(target: str) -> Any:
    """The object behind "module:attr"."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def parse_contender(text: str, default_backend: str = "eager") -> Contender:
    """A contender from `name`, `name@backend` or `name[key=value,…]@backend`, checked."""
    head, _, backend = text.strip().partition("@")
    name, bracket, inner = head.partition("[")
    if bracket and not inner.endswith("]"):
        raise UsageError(f"contender '{text}': the bracket is not closed")
    given: dict[str, Any] = {}
    for part in filter(None, inner.rstrip("]").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"contender '{text}': '{part}' is no key=value")
        given[key.strip()] = value.strip()
    return make_contender(name.strip(), backend.strip() or default_backend, given)


def make_contender(name: str, backend: str, given: Mapping[str, Any]) -> Contender:
    """A checked contender, its parameters in the order in which the normalizer declares them."""
    normalizer = normalizers()[name]
    if backend not in normalizer.backends:
        if backend in normalizer.without:
            raise UsageError(f"{name} has no backend '{backend}': {normalizer.without[backend]}")
        raise UnknownName("backend", backend, normalizer.backends, where=f"{name}: ")
    resolved = normalizer.resolve(dict(given))
    params = tuple((p.name, resolved[p.name]) for p in normalizer.params if p.name in given)
    return Contender(name, backend, params)


def build(contender: Contender) -> Any:
    """The op of a contender: its target called with all parameters."""
    normalizer = normalizers()[contender.normalizer]
    factory = load_target(normalizer.backends[contender.backend])
    params = normalizer.resolve(dict(contender.params))
    try:
        return factory(**params)
    except TypeError as error:
        raise InvalidParameter(f"{contender.id}: {error}") from error
