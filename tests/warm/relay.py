"""Represents a command that ``host.py`` runs: ``relay.py SOCKET_PATH -m MODULE ARGUMENTS``.

The command works on this process's descriptors, directory and environment; signals sent to this
process reach it, and this process ends as it does. Imports little: it starts for each command.
"""

import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def _number(connection: socket.socket) -> int:
    data = connection.recv(4, socket.MSG_WAITALL)
    if len(data) != 4:
        raise ConnectionError("the process that runs the tests' commands is gone")
    return int.from_bytes(data, sys.byteorder, signed=True)


def main() -> int:
    """Exit status of the command; does not return if a signal ended it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    command = {
        "arguments": sys.argv[2:],
        "directory": os.getcwd(),
        "environment": dict(os.environ),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        data = json.dumps(command).encode() + b"\n"
        sent = socket.send_fds(connection, [data], [0, 1, 2])
        connection.sendall(data[sent:])
        child = _number(connection)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: os.kill(child, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        status = _number(connection)
    if status < 0:
        if -status in FORWARDED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main())
