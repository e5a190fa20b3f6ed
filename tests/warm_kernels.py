"""Kernels forked from a process that has imported all that a notebook needs: seven seconds less of each notebook.

For tests of what notebooks do; that they also do it in an interpreter of their own is shown by test_notebooks.py.

python -m tests.warm_kernels SOCKET serves. What Jupyter starts as the kernel is this file with a connection file: it asks for
a fork with its own directory, environment and streams, and lives as long as that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOADED = (
    "ipykernel.kernelapp", "ipywidgets", "pandas", "torch._dynamo", "peft", "transformers.models.auto", "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer", "labkit.lab", "labkit.views", "labkit.views.conclusions", "labkit.views.explorer.widget",
    "plotly.io._renderers", "plotly.graph_objects",
)  # fmt: skip


AVAILABLE = sys.platform == "linux"
"""Elsewhere a process is not safely forked that has loaded so much; kernels are then started as ever."""


@contextmanager
def served(path: Path) -> Iterator[Path]:
    """The socket, while something serves it."""
    if not AVAILABLE:
        yield path
        return
    command = [sys.executable, "-m", "tests.warm_kernels", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # no pools of threads
    server = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment)
    try:
        while not path.exists():
            assert server.poll() is None, "the process with the imports has ended"
            time.sleep(0.05)
        yield path
    finally:
        server.kill()
        server.wait()


def manager_class(path: Path) -> type:
    """A kernel manager whose kernels are forks."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Warm(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-S", __file__, str(path), "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return Warm


def serve(path: str) -> None:
    """Import, then fork a kernel for each who connects."""
    import importlib

    from labkit.quick_imports import quick_nbformat

    quick_nbformat()
    for module in LOADED:
        importlib.import_module(module)
    threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    # The kernels lack the other threads: Arrow's allocator does without, anybody else might wait for one.
    assert sorted(set(threads[1:])) in ([], ["jemalloc_bg_thd"]), threads
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who has ended need not be waited for
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path + ".new")
        server.listen()
        os.rename(path + ".new", path)
        while True:
            asker, _ = server.accept()
            if os.fork() == 0:
                server.close()
                become_kernel(asker)
            asker.close()


def become_kernel(asker: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, streams, _, _ = socket.recv_fds(asker, 1, 3)
    with asker.makefile("rb") as file:
        asked = json.loads(file.readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    asker.sendall(os.getpid().to_bytes(8, "big"))

    def end_with_asker() -> None:
        asker.recv(1)
        os._exit(1)

    threading.Thread(target=end_with_asker, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher"]
    IPKernelApp.launch_instance(argv=asked["arguments"])
    sys.stdout.flush()
    os._exit(0)


def ask(path: str, connection: str, *options: str) -> None:
    # Jupyter's variable names a parent, and a kernel with another one ends.
    environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    arguments = ["-f", connection, "--log-level=50", *options]
    asked = {"cwd": os.getcwd(), "environment": environment, "arguments": arguments}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(asked).encode() + b"\n")
        kernel = int.from_bytes(server.recv(8), "big")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        server.recv(1)  # nothing comes: the kernel has ended


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else ask(*sys.argv[1:])
