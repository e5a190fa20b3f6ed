"""Libraries that load quickly: without parts that take long and that nothing here needs."""

from __future__ import annotations

import importlib
import sys


def quick_nbformat() -> None:
    """Load nbformat without a grammar of IRIs that takes 1.5 s to compile, where it is not loaded yet.

    jsonschema compiles it for a format that no notebook's schema names, and does without where it is not installed.
    """
    if "jsonschema" not in sys.modules and "rfc3987_syntax" not in sys.modules:
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # as Python spells "cannot be imported"
        try:
            importlib.import_module("jsonschema")
        finally:
            del sys.modules["rfc3987_syntax"]
    importlib.import_module("nbformat")
