"""What is known of a runtime's version."""

import pytest

from criw_supervisor.runtimes.advisories import known

PROCFS = "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881"


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("1.1.5+ds1", f"CVE-2024-21626, CVE-2024-45310, {PROCFS}, CVE-2026-41579"),
        ("1.1.15", f"{PROCFS}, CVE-2026-41579"),
        ("1.2.7", f"{PROCFS}, CVE-2026-41579"),
        ("1.2.9", "CVE-2026-41579"),
        ("1.3.5", "CVE-2026-41579"),
        ("1.4.0-rc.2", f"{PROCFS}, CVE-2026-41579"),
        ("1.5.0~rc1+ds", "CVE-2026-41579"),
    ],
)
def test_an_old_runc_has_what_was_mended_later_in_its_branch_or_never(version: str, names: str) -> None:
    wanted = f"runc {version} has {names}, unless whoever packaged it has mended them; "
    assert known(f"runc version {version}\ncommit: x\n") == f"{wanted}update to 1.3.6 or 1.4.3 or 1.5.0 or later"


@pytest.mark.parametrize("version", ["1.3.6", "1.4.3", "1.5.1", "1.6.0-rc.1", "2.0"])
def test_nothing_is_told_of_one_that_is_mended(version: str) -> None:
    assert known(f"runc version {version}\n") == ""


def test_each_runtime_has_vulnerabilities_of_its_own() -> None:
    assert known("crun version 1.8.1\ncommit: f8a\n").startswith("crun 1.8.1 has CVE-2026-47766, unless")
    assert known("crun version 1.29.1\n") == ""


@pytest.mark.parametrize("said", ["", "runsc version release-20260101.0\n", "kata-runtime  : 3.2.0", "runc version x"])
def test_nothing_is_told_of_what_is_not_known(said: str) -> None:
    assert known(said) == ""
