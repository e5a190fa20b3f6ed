"""The one step of the build that pyproject.toml cannot say: a wheel takes notebooks/ and params/ along, for `labkit new`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProject(build_py):
    """Copies them into the package that is built; an editable install finds them at the checkout's root."""

    def run(self) -> None:
        """Build as always, then copy."""
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in (("notebooks", "*.ipynb"), ("params", "*.yaml"), ("params/controls", "*.yaml")):
            target = Path(self.build_lib, "labkit", "project_files", folder)
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for file in sorted(Path(folder).glob(f"[!.]{pattern}")):
                shutil.copyfile(file, target / file.name)


setup(cmdclass={"build_py": BuildWithProject})
