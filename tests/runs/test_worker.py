"""A worker process loads what its task needs, and nothing that only a notebook shows."""

from __future__ import annotations

import subprocess
import sys


def test_a_worker_loads_neither_views_nor_the_notebooks_face():
    code = "import sys, labkit.runs.worker; print(*sorted(name for name in sys.modules if name.startswith('labkit.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "labkit.runs.workbench" in modules
    rooms = {name.split(".")[1] for name in modules}
    assert not rooms & {"views", "lab", "doctor", "cli"}
