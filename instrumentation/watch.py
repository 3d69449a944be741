"""Tell when a module has been imported: the agent pays for instrumentation only when it meets what is instrumented.

Imported at the start of every Python process under lightning-instrument, so it imports nothing that Python has not already.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    Then = Callable[[ModuleType], None]


class Watch:
    """A finder that finds nothing itself: it lets the others find, and calls back after the module has run."""

    def __init__(self) -> None:
        self._then: dict[str, list[Then]] = {}
        self._finding: set[tuple[int, str]] = set()
        self._ran: set[str] = set()

    def when(self, name: str, then: Then) -> None:
        """Call `then(module)` after `name` has been imported; at once if it has been. It may not raise into the import."""
        module = sys.modules.get(name)
        initializing = getattr(getattr(module, "__spec__", None), "_initializing", False)
        if module is not None and (name in self._ran or not initializing):
            call(then, module)
            return
        self._then.setdefault(name, []).append(then)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """The spec that the other finders give, with a loader that calls back."""
        finding = (get_ident(), fullname)
        if fullname not in self._then or finding in self._finding:
            return None
        self._finding.add(finding)
        try:
            for finder in sys.meta_path:
                if finder is self or not hasattr(finder, "find_spec"):
                    continue
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    break
            else:
                return None
        finally:
            self._finding.discard(finding)
        if hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(  # type: ignore[assignment]
                spec.loader, lambda module: self._imported(fullname, module)
            )
        return spec

    def _imported(self, name: str, module: ModuleType) -> None:
        self._ran.add(name)
        for then in self._then.pop(name, ()):
            call(then, module)


class _Loader:
    def __init__(self, inner: Any, after: Then) -> None:
        self._inner, self._after = inner, after

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as if it had been found without us, to pickle, importlib.resources and reload.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        self._after(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def call(then: Then, module: ModuleType) -> None:
    """Whatever goes wrong in instrumentation is a line in the log, never the agent's problem."""
    try:
        then(module)
    except Exception as error:
        import logging

        logging.getLogger("otel_lightning").warning(
            "instrumenting %s failed: %s: %s", module.__name__, type(error).__name__, error
        )


watch = Watch()
