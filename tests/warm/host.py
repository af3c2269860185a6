"""A process that forks itself for each command: ``host.py SOCKET_PATH``, until standard input ends.

It has imported what the commands import first, which is most of what a short command costs, and
has done nothing else: no model, no MLX array, and no thread except OpenBLAS's, which handles a
fork. A forked child takes over the descriptors, directory, environment and arguments of the
command, goes on with the function of ``runpy`` that is ``python -m``, and ends as Python ends.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from types import ModuleType
from typing import Any

# mlx_vlm imports transformers, numpy and more, and each of its commands imports it first; the
# others are libraries that the commands import later.
PRELOADED = (
    "mlx_vlm",
    "transformers.models.auto.processing_auto",
    "rich.console",
    "fastapi",
    "uvicorn",
)
MAX_MESSAGE_BYTES = 1 << 20


def _preload() -> set[str]:
    """Import ``PRELOADED``; returns the environment variables that were read meanwhile."""
    importlib.import_module("tqdm.utils")  # reads all variables, for those named TQDM_...
    kind, names = type(os.environ), set()
    read = kind.__getitem__

    def recorded(environment: os._Environ, name: str) -> str:
        names.add(name)
        return read(environment, name)

    kind.__getitem__ = recorded
    try:
        for name in PRELOADED:
            importlib.import_module(name)
    finally:
        kind.__getitem__ = read
    return names


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive a command from its relay: one line of JSON with three descriptors."""
    data, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 3)
    while not data.endswith(b"\n"):
        more = connection.recv(MAX_MESSAGE_BYTES)
        if not more:
            raise ConnectionError("the relay is gone")
        data += more
    return json.loads(data), descriptors


def _become(command: dict[str, Any], descriptors: list[int]) -> None:
    """Set up this process like a new one of ``python ARGUMENTS``."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, or a shell's background, ignores it
    os.chdir(command["directory"])
    os.environ.clear()
    os.environ.update(command["environment"])
    option, _, *rest = command["arguments"]
    sys.path[0] = os.getcwd() if option == "-m" else ""
    sys.argv = [option, *rest]
    sys.orig_argv = [sys.executable, *command["arguments"]]
    sys.modules["__main__"] = ModuleType("__main__")
    # Seeded at their import; without this every command would draw the same numbers.
    sys.modules["numpy"].random.seed()
    sys.modules["mlx.core"].random.seed(int.from_bytes(os.urandom(8), "little"))


def _monitor(connection: socket.socket, child: int) -> None:
    """Send the command's process id and later its status; kill it if the relay is killed."""
    connection.sendall(array.array("i", [child]).tobytes())
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # a relay that was killed does not wait for it
        connection.sendall(array.array("i", [status]).tobytes())


def _reap() -> None:
    """Wait for monitors that have ended, so that their CPU time is counted."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _serve(listener: socket.socket) -> list[str] | None:
    """Fork for each command until standard input ends; in a child, the command's arguments."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin.buffer.raw], [], [], 1.0)
        _reap()
        if listener in ready:
            connection, _ = listener.accept()
            if os.fork() == 0:
                command, descriptors = _receive(connection)
                child = os.fork()
                if child == 0:
                    for inherited in (listener, connection):
                        inherited.detach()  # closed by number, with the rest
                    _become(command, descriptors)
                    return command["arguments"]
                for descriptor in descriptors:
                    os.close(descriptor)
                _monitor(connection, child)
                os._exit(0)
            connection.close()
        elif ready:
            return None


def main() -> list[str] | None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest and the commands
    names = _preload()
    gc.freeze()  # the collector leaves these pages shared
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print(json.dumps(sorted(names)), flush=True)
        return _serve(listener)


if __name__ == "__main__":
    arguments = main()
    if arguments is None:
        pass
    elif arguments[0] == "-m":
        runpy._run_module_as_main(arguments[1])
    else:
        exec(compile(arguments[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
