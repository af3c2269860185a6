"""Commands that start warm are as if they had started in a new process."""

import json
import os
import signal
import subprocess
import sys

import pytest
import warm_processes
from support import run_module
from warm_processes import command, offline

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not warm_processes._enabled,
    reason="commands are not forked here",
)

# What a command sees of its process, in one line. Not SIGINT, which a shell that runs the tests in
# the background has ignored; a command that starts warm receives it always.
SEEN = """
import json, os, signal, sys, threading
print(json.dumps([
    sys.argv, sys.orig_argv[1:], sys.path, sys.flags.optimize, __name__, __spec__ and __spec__.name,
    sorted(os.environ.items()), os.getcwd(), sys.stdin.read(), sys.stdout.isatty(),
    sys.stdout.line_buffering, sys.stdout.encoding, sys.stderr.line_buffering,
    [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)],
    threading.active_count(), sorted(os.listdir("/proc/self/fd")),
]))
"""


def both(tmp_path, *arguments: str) -> list[subprocess.CompletedProcess]:
    """The command as a forked and as a new process."""
    environment = {**offline(os.environ), "COLUMNS": "77"}
    warm = command(*arguments, environment=environment)
    assert "relay.py" in " ".join(warm)
    return [
        subprocess.run(
            words, capture_output=True, text=True, input="in", env=environment, cwd=tmp_path
        )
        for words in (warm, [sys.executable, *arguments])
    ]


def test_a_module_sees_what_it_sees_in_a_new_process(tmp_path):
    (tmp_path / "seen.py").write_text(SEEN)
    warm, new = both(tmp_path, "-m", "seen", "a", "b c")
    assert warm.returncode == 0, warm.stderr
    assert json.loads(warm.stdout) == json.loads(new.stdout)
    assert '"in"' in warm.stdout


def test_code_sees_what_it_sees_in_a_new_process(tmp_path):
    warm, new = both(tmp_path, "-c", SEEN.replace("__spec__ and __spec__.name", "0"), "a", "b c")
    assert warm.returncode == 0, warm.stderr
    assert json.loads(warm.stdout) == json.loads(new.stdout)


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit",
        "raise SystemExit(3)",
        "raise SystemExit('a sentence')",
        "import os; os._exit(4)",
        "import atexit; atexit.register(print, 'at the end')",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import threading; threading.Thread(target=print, args=['of a thread']).start()",
    ],
)
def test_a_command_ends_as_in_a_new_process(tmp_path, code):
    warm, new = both(tmp_path, "-c", code)
    assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)


def test_an_error_ends_with_its_line(tmp_path):
    warm, new = both(tmp_path, "-c", "1 / 0")
    assert warm.returncode == new.returncode == 1
    assert warm.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


def test_a_module_that_does_not_exist_is_named(tmp_path):
    warm, new = both(tmp_path, "-m", "nowhere")
    assert (warm.returncode, warm.stderr) == (new.returncode, new.stderr)


WAIT = "import time; print('waits', flush=True); time.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_command(number):
    words = command("-c", WAIT, environment=offline(os.environ))
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=offline(os.environ)
    )
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)


def test_a_killed_command_is_gone():
    words = command("-c", WAIT, environment=offline(os.environ))
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=offline(os.environ)
    ) as process:
        assert process.stdout.readline() == "waits\n"
        process.kill()
        # The output ends when the command has ended, which held it open.
        assert not process.stdout.read()


def test_a_command_has_the_modules_of_mlx_vlm_and_mlx_lm_and_no_others_yet():
    code = """
import sys
names = ("mlx_vlm.server", "mlx_vlm.models", "mlx_vlm_moxin.", "mlx_lm.models")
print([name for name in sys.modules if name.startswith(names)])
"""
    words = command("-c", code, environment=offline(os.environ))
    found = subprocess.run(words, capture_output=True, text=True, env=offline(os.environ))
    new = subprocess.run(
        [sys.executable, "-c", f"import mlx_vlm\n{code}"], capture_output=True, text=True
    )
    assert found.stdout == new.stdout


def test_commands_draw_different_random_numbers():
    code = "import numpy, mlx.core as mx, random; print(numpy.random.rand(), mx.random.uniform())"
    words = command("-c", code, environment=offline(os.environ))
    drawn = {subprocess.check_output(words, env=offline(os.environ)) for _ in range(2)}
    assert len(drawn) == 2


@pytest.mark.parametrize("name", ["HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH", "MLX_METAL_JIT"])
def test_an_environment_that_imports_read_gets_a_new_process(name, tmp_path):
    words = command("-c", "", environment={**offline(os.environ), name: str(tmp_path)})
    assert words == [sys.executable, "-c", ""]


def test_output_without_an_end_does_not_block():
    result = run_module("this")
    assert result.stdout.startswith("The Zen of Python")
