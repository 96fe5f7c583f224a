"""The worker knows nothing of the agent: neither its code nor anything else that could be turned against the host."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from criw_storage import unpack, worker
from criw_storage.worker import program

DECOMPRESSORS = {"isal", "zstandard"}
MODULES = sorted(Path(worker.__file__).parent.glob("*.py"))


def imported(source: str) -> set[str]:
    """All modules that are imported anywhere in a source, as absolute names; `from` imports with what they name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_it_imports_the_standard_library_the_decompressors_and_itself(module: Path) -> None:
    strange = {
        name
        for name in imported(module.read_text())
        if not name.startswith("criw_storage.worker.")
        and name.partition(".")[0] not in sys.stdlib_module_names | DECOMPRESSORS
    }
    assert strange == set()


def test_starting_it_loads_nothing_of_the_agent_and_nothing_slow() -> None:
    """In a Python as `unpack` starts it, so that what the modules import themselves counts, too."""
    start = f"import sys; sys.path[:0] = sys.argv[1:]; import {program.__name__}; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", start, *unpack._import_paths()]
    loaded = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    ours = {name for name in loaded if name.startswith("criw")}
    assert ours == {
        "criw_storage",
        "criw_storage.worker",
        *(f"criw_storage.worker.{module.stem}" for module in MODULES if module.stem != "__init__"),
    }
    assert {name.partition(".")[0] for name in loaded} <= {"__main__", "criw_storage", *sys.stdlib_module_names}
    assert {"typing", "asyncio", "hashlib", "logging", "signal"}.isdisjoint(loaded)
