"""What a conversion leaves when a signal or a full disk stops it."""

import os
import resource
import signal
import subprocess
import sys

import pytest
from source_checkpoints import HF_ARGUMENTS, load_weights
from warm_processes import command as warm_command
from warm_processes import offline

from mlx_vlm_moxin.conversion.command_line import main

# Makes the conversion print a line and wait in the middle of its second shard.
WAIT = """
import sys, time
from mlx_vlm_moxin.conversion.command_line import main
from mlx_vlm_moxin.conversion import convert
compute = convert.compute_tensors
def wait(source, skeleton, on_progress):
    for name, value in compute(source, skeleton, on_progress):
        if name.endswith("layers.2.mlp.up_proj.weight"):
            print("waiting", flush=True)
            time.sleep(60)
        yield name, value
convert.compute_tensors = wait
sys.exit(main(sys.argv[1:]))
"""


class TestStopped:
    def start(self, target, *arguments, code=WAIT, **kwargs):
        arguments = ["-c", code, *HF_ARGUMENTS, "--mlx-path", str(target), *arguments]
        environment = offline(os.environ)
        # What preexec_fn sets reaches new processes only.
        warm = [] if "preexec_fn" in kwargs else warm_command(*arguments, environment=environment)
        return subprocess.Popen(
            warm or [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **kwargs,
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_leaves_nothing(self, target, number):
        process = self.start(target)
        assert process.stdout.readline() == "waiting\n"
        assert (target.parent / ".model.partial" / "model.safetensors").exists()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback" not in err
        assert err.splitlines()[-1] == (
            f"error: stopped; nothing incomplete is left at {target}; "
            "run the same command again, finished downloads are kept"
        )
        assert not any(target.parent.iterdir())

    def test_an_old_model_survives_and_the_next_run_cleans_up(self, target):
        assert main([*HF_ARGUMENTS, "--mlx-path", str(target), "--no-verify"]) == 0
        before = (target / "model.safetensors").read_bytes()
        process = self.start(target, "--overwrite", "--dtype", "float32")
        assert process.stdout.readline() == "waiting\n"
        process.kill()
        process.communicate(timeout=60)
        assert (target / "model.safetensors").read_bytes() == before
        assert (target.parent / ".model.partial").exists()
        arguments = ["--overwrite", "--dtype", "float16", "--no-verify"]
        assert main([*HF_ARGUMENTS, "--mlx-path", str(target), *arguments]) == 0
        assert [path.name for path in target.parent.iterdir()] == ["model"]
        assert {str(v.dtype) for v in load_weights(target).values()} == {"mlx.core.float16"}

    def test_a_signal_during_verification_keeps_the_model(self, target):
        code = """
import sys, time
from mlx_vlm_moxin.conversion.verify import cost
from mlx_vlm_moxin.conversion.command_line import main
def wait(*arguments):
    print("waiting", flush=True)
    time.sleep(60)
cost.verify = wait
sys.exit(main(sys.argv[1:]))
"""
        process = self.start(target, "-q", "--quiet", code=code)
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert err == f"error: stopped; the model is whole in {target}; see --no-verify\n"
        assert (target / "config.json").exists()

    def test_a_full_disk_leaves_nothing(self, target):
        """A limit on file size replaces the full disk: writing fails in the same way."""

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

        code = (
            "import sys; from mlx_vlm_moxin.conversion.command_line import main; "
            "sys.exit(main(sys.argv[1:]))"
        )
        process = self.start(target, "--quiet", code=code, preexec_fn=limit)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert err == (
            f"error: File too large while writing; {target} is unchanged. "
            "Free some space or choose another --mlx-path\n"
        )
        assert not any(target.parent.iterdir())
