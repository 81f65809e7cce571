"""Packages whose public names are looked up on first use (PEP 562): importing such a package loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, places: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        places: the names by the module that has them, relative to the package: ``{'.run': ('Run', 'load_run')}``.
            A module without names is a name itself.
    """
    modules = {name: module for module, names in places.items() for name in names}
    modules |= {module[1:]: module for module, names in places.items() if not names}

    def look_up(name: str) -> Any:
        if name not in modules:  # Python then looks for a submodule of that name
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        module = import_module(modules[name], package)
        return module if modules[name] == f'.{name}' else getattr(module, name)

    def list_names() -> list[str]:
        return sorted(modules)

    return look_up, list_names, sorted(modules)
