"""Projects: the folder with notebooks/ and params/ that a run needs, copied from those that labkit ships.

A checkout has both at its root. A wheel holds a copy of them, made when it is built (setup.py), in labkit/project_files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from labkit.errors import LabError
from labkit.files import replacing
from labkit.runs.run import STAGES

PARTS = {"notebooks": ("[!.]*.ipynb",), "params": ("[!.]*.yaml", "controls/[!.]*.yaml")}
"""The folders of a project, and what belongs to each."""
_PACKAGE = Path(__file__).parents[1]


def lay_out(folder: str | Path) -> list[Path]:
    """Write notebooks/ and params/ into `folder`, made if it is not there, and return the files.

    Raises LabError, with nothing written, when one of the two is there already or `folder` is no folder, and when this labkit has
    lost them.
    """
    folder = Path(folder)
    home = _PACKAGE / "project_files"
    if not home.is_dir():
        home = _PACKAGE.parent
    sources = {
        name: [file for pattern in patterns for file in sorted((home / name).glob(pattern))]
        for name, patterns in PARTS.items()
    }
    if lost := [name for name, files in sources.items() if not files]:
        raise LabError(f"'{home}' holds no {' and no '.join(lost)}; install labkit again")
    if folder.exists() and not folder.is_dir():
        raise LabError(f"'{folder}' is a file; name a folder")
    if there := [str(folder / name) for name in sources if (folder / name).exists()]:
        raise LabError(f"{' and '.join(map(repr, there))} exist already; name a folder without them")
    written = []
    for name, files in sources.items():
        (folder / name).mkdir(parents=True)
        for source in files:
            target = folder / source.relative_to(home)
            target.parent.mkdir(exist_ok=True)
            with replacing(target) as draft:
                shutil.copyfile(source, draft)  # not the rights of an installed file, which may be read-only
            written.append(target)
    return written


def notebooks_of(root: Path) -> dict[str, Path]:
    """The five notebooks of the project in `root`, by stage; raises LabError when one is not there."""
    sources = {name: root / "notebooks" / f"{name}.ipynb" for name in STAGES}
    for source in sources.values():
        if not source.is_file():
            raise LabError(
                f"there is no notebook '{source}'; run labkit inside a project, such as the one that `labkit new FOLDER` "
                "lays out"
            )
    return sources
