"""The house as it is laid out: who may import whom, and how large a room may be."""

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

SOURCES: Final = Path(__file__).parents[2]
PACKAGES: Final = {path.parent.name: path.parent for path in SOURCES.glob("s*/criw*/__init__.py")}
MODULE_LINES: Final = 300
FUNCTION_LINES: Final = 60
# The rooms of a package from top to bottom: an import never goes up. A new room is given its place here.
FLOORS: Final = {
    "criw_supervisor": (
        *("__main__", "rpc", "ends", "recovery", "stats", "pods", "containers", "exec", "peers"),
        *("runtimes", "oci", "face", "ledger", "cgroups", "processes", "signals"),
    ),
    "criw_network": ("__main__", "rpc", "attachments", "builtin", "provider", "netns", "netlink", "pod"),
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The sources by the names of their modules; a package's own is named as the package."""
    return {
        ".".join(path.relative_to(top.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for top in PACKAGES.values()
        for path in top.rglob("*.py")
    }


def imported(module: str) -> Iterator[str]:
    """Ours and others', as deep as they are modules of ours; those of a function or of TYPE_CHECKING, too."""
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} has a relative import"
            deeper = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules() else node.module for name in deeper)


def test_the_library_knows_no_service_and_a_service_no_other() -> None:
    assert {"criw", "criw_supervisor", "criw_cri"} < PACKAGES.keys()
    for module in modules():
        package = module.partition(".")[0]
        strange = {name for name in imported(module) if name.partition(".")[0] in PACKAGES.keys() - {package, "criw"}}
        assert not strange, module


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_imported_by_one_it_needs(package: str) -> None:
    own = [name for name in modules() if name.partition(".")[0] == package]
    TopologicalSorter({name: set(imported(name)) - {name} for name in own}).prepare()  # raises CycleError


@pytest.mark.parametrize("package", FLOORS)
def test_an_import_never_goes_up(package: str) -> None:
    floors = {f"{package}.{room}": number for number, room in enumerate(FLOORS[package])}
    for module in modules():
        if module.startswith(f"{package}."):
            here = floors[".".join(module.split(".")[:2])]
            rooms = {".".join(name.split(".")[:2]) for name in imported(module) if name.startswith(f"{package}.")}
            assert {room for room in rooms if floors[room] < here} == set(), module


def test_modules_and_functions_can_be_read_at_one_sitting() -> None:
    for name, tree in modules().items():
        length = max((node.end_lineno or 0 for node in ast.walk(tree) if isinstance(node, ast.stmt)), default=0)
        assert length <= MODULE_LINES, name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                assert lines <= FUNCTION_LINES, f"{name}.{node.name}"


def test_no_transport_of_the_loop_reads_or_writes_a_pipe() -> None:
    # uvloop closes the descriptor of one twice: by then a thread may have opened another file under the number.
    for name, tree in modules().items():
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert used.isdisjoint({"connect_read_pipe", "connect_write_pipe"}), name
