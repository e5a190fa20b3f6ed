from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from labkit.files import replacing


def test_threads_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    target, inside = tmp_path / "frames.npz", threading.Barrier(4)
    failed: list[BaseException] = []

    def write(text: str) -> None:
        try:
            with replacing(target) as temporary:
                temporary.write_text(text)
                inside.wait(30)  # all have written, none has moved its file
                assert temporary.read_text() == text
        except BaseException as error:
            failed.append(error)

    texts = [str(k) * 1000 for k in range(4)]
    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and target.read_text() in texts
    assert list(tmp_path.iterdir()) == [target]


def test_notebooks_are_read_without_the_grammar_that_takes_a_second_and_a_half() -> None:
    script = """
import sys
from labkit.quick_imports import quick_nbformat
quick_nbformat()
assert "rfc3987_syntax" not in sys.modules
import nbformat
nbformat.validate(nbformat.v4.new_notebook())
"""
    subprocess.run([sys.executable, "-c", script], check=True)
