"""A user's Python file as a module: how plug-ins are loaded."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from bench.core.errors import USER_MODULE


def run_file(path: Path) -> ModuleType:
    """Run the file, as a module that can import what lies beside it. Raises whatever the file raises."""
    spec = importlib.util.spec_from_file_location(f"{USER_MODULE}{path.stem}", path)
    assert spec and spec.loader, path  # there is one for every .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]  # as an import does: half a module is none
        raise
    return module
