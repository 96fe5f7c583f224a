"""proto/criw_proto is what the *.proto files of this tree generate."""

import filecmp
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def files(directory: Path) -> set[str]:
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_current(tmp_path: Path) -> None:
    fresh, committed = tmp_path / "criw_proto", ROOT / "proto" / "criw_proto"
    subprocess.run([ROOT / "scripts" / "proto.sh", fresh], check=True, stdin=subprocess.DEVNULL)
    assert files(fresh) == files(committed)
    _same, differing, unreadable = filecmp.cmpfiles(fresh, committed, files(fresh), shallow=False)
    assert (differing, unreadable) == ([], []), "type: make proto"
