"""Fast commands: forked from a process that has already imported mlx-vlm.

``python -m COMMAND`` costs 1.4 to 1.8 s of CPU, most of it imports that are the same each time.
Where forking is safe (Linux, MLX on the CPU: no Metal, no CUDA, no threads of MLX yet) ``command``
gives an equivalent that costs 0.2 to 0.5 s. Elsewhere, and in environments that differ in what
those imports read, it gives ``python -m`` itself.

Not for tests of what is imported when, which need a new process: ``support.run_python``.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

FOLDER = Path(__file__).parent / "warm"
# Variables that Python, its native modules and tqdm read without os.environ[name].
READ_NATIVELY = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MLX_", "OMP_", "OPENBLAS_", "MALLOC_")
READ_NATIVELY += ("GLIBC_", "TQDM_", "RAYON_", "TOKENIZERS_")
# Variables of mlx-vlm's server and this package, read by code that is not preloaded.
READ_LATER = ("MLX_VLM_",)


class _Host:
    """The process ``warm/host.py``."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="warm-")
        self.path = f"{self._place.name}/socket"
        self._environment = offline(os.environ)
        self._process = subprocess.Popen(
            [sys.executable, FOLDER / "host.py", self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
        )
        line = self._process.stdout.readline()
        assert line, "warm/host.py did not start"
        self._read = set(json.loads(line))

    def imports_alike(self, environment: Mapping[str, str]) -> bool:
        """Whether a new process in ``environment`` would have imported the same."""

        def imports(variables: Mapping[str, str]) -> dict[str, str]:
            return {name: value for name, value in variables.items() if self._is_read(name)}

        return imports(environment) == imports(self._environment)

    def _is_read(self, name: str) -> bool:
        natively = name.startswith(READ_NATIVELY) and not name.startswith(READ_LATER)
        return natively or name in self._read

    def stop(self) -> None:
        """End the process; running commands continue."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._place.cleanup()


# Set by the tests' conftest: scripts that share a module with the tests start new processes.
_enabled = False


def enable() -> None:
    """Fork commands from now on, where that is possible."""
    global _enabled
    _enabled = sys.platform == "linux" and mx.default_device() == mx.cpu


@functools.cache
def _host() -> _Host:
    return _Host()


def offline(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without the Hugging Face Hub."""
    return {**environment, "HF_HUB_OFFLINE": "1"}


def command(*arguments: object, environment: Mapping[str, str]) -> list[str]:
    """The arguments of ``subprocess`` for ``python ARGUMENTS``, run in ``environment``.

    It has the same output, exit status and effects, and receives signals. The process id is not
    the command's, and resource limits set on it (``preexec_fn``) do not reach the command.

    Args:
        arguments: ``-m`` and a module, or ``-c`` and code, then the command's own arguments.
        environment: to be given to ``subprocess`` too.
    """
    words = [*map(str, arguments)]
    if not _enabled or not _host().imports_alike(environment):
        return [sys.executable, *words]
    return [sys.executable, "-S", "-E", str(FOLDER / "relay.py"), _host().path, *words]


def stop() -> None:
    """End the process from which commands are forked, if there is one."""
    if _host.cache_info().currsize:
        _host().stop()
        _host.cache_clear()
