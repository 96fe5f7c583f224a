"""What pyroute2 costs, 8 MB and a tenth of a second at each start, is the network agent's alone."""

import subprocess
import sys

import pytest

from criw.config.common import AGENTS
from criw_ctl.forked import SHARED

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print("pyroute2" in sys.modules)
"""


def imports_pyroute2(*modules: str) -> bool:
    argv = [sys.executable, "-c", PROGRAM, *modules]
    done = subprocess.run(argv, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True)
    return {"True\n": True, "False\n": False}[done.stdout]


@pytest.mark.parametrize("agent", AGENTS)
def test_only_the_network_agent_imports_pyroute2(agent: str) -> None:
    assert imports_pyroute2(f"criw_{agent}.__main__") is (agent == "network")


def test_the_process_that_agents_are_forked_from_does_not_import_it() -> None:
    assert not imports_pyroute2("criw_ctl.__main__", *SHARED)
