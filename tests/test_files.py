from __future__ import annotations

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
