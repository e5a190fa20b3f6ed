"""Versions of labkit (with the commit, in a checkout), of Python and of the packages that a run depends on."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "decord", "av", "numpy")
PARTS = ("labkit", "notebooks", "params", "pyproject.toml")
"""What of a checkout decides what a run does; whoever writes elsewhere in it has changed nothing."""


def package_versions() -> dict[str, str]:
    """The version of Python and of each package that decides what a run computes."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}


def package_version(package: str) -> str:
    """An installed package's version, or that it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def source_version(root: Path = Path(__file__).parents[2]) -> dict[str, Any]:
    """`commit`, and `changed`: whether code, notebooks or params differ from it; {} where `root` is no checkout or git is absent."""
    # A site-packages inside of somebody's repository is not that repository.
    if not (root / ".git").exists():
        return {}
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *PARTS)
    if commit is None or changes is None:
        return {}
    return {"commit": commit.strip(), "changed": bool(changes.strip())}


def version_text(entry: dict[str, Any]) -> str:
    """The version of labkit in a manifest, or in a stage's entry, as text.

    >>> version_text({"labkit": "0.1.0", "commit": "914270c5d0", "changed": True})
    '0.1.0, commit 914270c with local changes'
    >>> version_text({"labkit": "0.1.0"})
    '0.1.0'
    """
    text = str(entry.get("labkit", "not recorded"))
    if commit := entry.get("commit"):
        text += f", commit {str(commit)[:7]}" + (" with local changes" if entry.get("changed") else "")
    return text


def _git(root: Path, *command: str) -> str | None:
    """What git answers about the repository in `root`; None where it is absent, hangs, or refuses (another's checkout)."""
    # A hook's variables name another repository; and a look at it must not write into it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, errors="replace", timeout=20,
            stdin=subprocess.DEVNULL, env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
