"""scripts/make_venv.sh on a machine with a broken Python shim, and a second time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_failing_shim_is_passed_over_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    """Breaks when a version manager's dead shim is taken for Python, or everything is installed again each time."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "make_venv.sh", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    _script(tools / "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    _script(tools / "python3.10", f'exec {sys.executable} "$@"')
    env = {**os.environ, "PATH": f"{tools}:/usr/bin:/bin"}
    command = [str(tmp_path / "scripts" / "make_venv.sh")]

    first = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert "making .venv" in first.stdout
    assert "installing" in first.stdout
    stamp = tmp_path / ".venv" / "requirements.sha256"
    assert len(stamp.read_text().strip()) == 64
    second = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert second.stdout == ""
    (tmp_path / "requirements.txt").write_text("# changed\n")
    third = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert "installing" in third.stdout
    assert "making" not in third.stdout


def test_without_a_usable_python_it_says_what_to_install(tmp_path: Path) -> None:
    """Breaks when a newcomer with another Python gets a traceback in place of the next step."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "make_venv.sh", tmp_path / "scripts")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("python3.11", "python3.10", "python3", "python"):
        _script(tools / name, "exit 1")
    for name in ("bash", "dirname", "env"):
        (tools / name).symlink_to(shutil.which(name) or name)
    answer = subprocess.run(
        [str(tmp_path / "scripts" / "make_venv.sh")],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 2
    assert "3.10 or 3.11" in answer.stderr
    assert not (tmp_path / ".venv").exists()
