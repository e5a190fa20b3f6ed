"""Whether JupyterLab keeps what widgets show: a notebook that was run by hand is saved without it unless told otherwise."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from shlex import quote

_KEEPS = re.compile(r'"saveState"\s*:\s*true')
_MANAGER = "@jupyter-widgets/jupyterlab-manager"
_OURS = Path(__file__).parents[3] / "share/jupyter/lab/settings/overrides.d/labkit.json"


def saving_hint() -> str:
    """What to do so that this environment's JupyterLab saves widgets with a notebook; "" where it does, or isn't here.

    A plain install brings the setting along, an editable one cannot. The reader's own settings count, too.
    """
    lab = Path(os.environ.get("JUPYTERLAB_DIR") or Path(sys.prefix, "share/jupyter/lab"))
    if not lab.is_dir():
        return ""  # the kernel of a JupyterLab that lives elsewhere, whose settings cannot be seen from here
    from jupyter_core.paths import jupyter_config_dir

    own = os.environ.get("JUPYTERLAB_SETTINGS_DIR") or Path(jupyter_config_dir(), "lab/user-settings")
    files = [
        *(lab / "settings").glob("overrides.json*"),
        *(lab / "settings").glob("overrides.d/*.json*"),
        *Path(own, _MANAGER).glob("plugin.jupyterlab-settings"),
    ]
    if any(_KEEPS.search(file.read_text(encoding="utf-8", errors="replace")) for file in files):
        return ""
    target = lab / "settings/overrides.d"
    how = (
        f"mkdir -p {quote(str(target))} && cp {quote(str(_OURS))} {quote(str(target))}"
        if _OURS.is_file()
        else f"pip install labkit into {sys.prefix}"
    )
    return f"JupyterLab saves notebooks without what widgets show; to keep it, once: {how}"


@functools.cache
def hint_here() -> str:
    """The same, where somebody works in JupyterLab; "" in a batch, whose notebooks keep their widgets anyway."""
    return saving_hint() if "JPY_SESSION_NAME" in os.environ else ""
