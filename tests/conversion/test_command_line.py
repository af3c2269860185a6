"""The command line: output, one-line errors and exit statuses."""

import re
import shutil

import pytest
from source_checkpoints import HF_ARGUMENTS, NATIVE_ARGUMENTS, copy_checkpoint, with_weights
from support import HF_CHECKPOINT, IMAGES

from mlx_vlm_moxin.conversion.command_line import main

pytestmark = pytest.mark.usefixtures("short_answers")


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def error_of(capsys, target, *arguments) -> str:
    """The one line that a failing command prints; checks that it leaves no files."""
    before = sorted(path.name for path in target.parent.iterdir())
    status, out, err = run(capsys, *arguments, "--mlx-path", target, "--quiet")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert sorted(path.name for path in target.parent.iterdir()) == before
    return err


class TestRuns:
    def test_source_progress_and_bits_per_weight_are_shown(self, capsys, target, tmp_path):
        shutil.copy(IMAGES / "photo.png", tmp_path)
        quantize = ["-q", "--verify-images", tmp_path]
        status, out, err = run(capsys, *NATIVE_ARGUMENTS, "--mlx-path", target, *quantize)
        assert status == 0
        assert "Converted a native Prismatic run directory to" in out
        assert "bits per weight" in out
        assert re.search(r"Converting: 100%.*[kM]B/s", err, re.DOTALL)

    def test_quiet_says_nothing(self, capfd, target):
        arguments = [*HF_ARGUMENTS, "--mlx-path", str(target), "-q", "--q-bits", "8", "--quiet"]
        assert main([*arguments, "--no-verify"]) == 0
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param(HF_ARGUMENTS, id="hf"),
            pytest.param(NATIVE_ARGUMENTS, id="native", marks=pytest.mark.slow),
        ],
    )
    def test_quantising_is_verified_and_written_into_the_card(
        self, capsys, target, tmp_path, arguments
    ):
        shutil.copy(IMAGES / "photo.png", tmp_path)
        quantize = ["-q", "--q-bits", 8, "--verify-images", tmp_path]
        status, out, _ = run(capsys, *arguments, "--mlx-path", target, *quantize)
        assert status == 0
        assert "photo.png" in out
        assert (target / "verification.json").exists()
        assert "Top-1 agreement" in (target / "README.md").read_text()
        assert [path.name for path in target.parent.iterdir()] == ["model"]

    def test_no_verify_skips_verification(self, capsys, target):
        status, out, _ = run(capsys, *HF_ARGUMENTS, "--mlx-path", target, "-q", "--no-verify")
        assert status == 0
        assert "top-1" not in out
        assert not (target / "verification.json").exists()

    def test_layout_changes_alone_are_not_verified(self, capsys, target):
        status, out, _ = run(capsys, *NATIVE_ARGUMENTS, "--mlx-path", target)
        assert status == 0
        assert "Not verified: nothing was quantised" in out

    def test_sources_larger_than_the_memory_are_not_verified(self, capsys, target, monkeypatch):
        monkeypatch.setattr("mlx_vlm_moxin.conversion.verify.cost._physical_memory", lambda: 1000)
        status, out, _ = run(capsys, *HF_ARGUMENTS, "--mlx-path", target, "-q")
        assert status == 0
        assert "give --verify to do it anyway" in out
        assert not (target / "verification.json").exists()

    def test_a_failing_verification_does_not_lose_the_model(self, capsys, target, monkeypatch):
        def fail(*arguments):
            raise MemoryError("no memory")

        monkeypatch.setattr("mlx_vlm_moxin.conversion.verify.cost.verify", fail)
        status, _, err = run(capsys, *HF_ARGUMENTS, "--mlx-path", target, "-q", "--quiet")
        assert status == 0
        assert err == "warning: not verified: no memory\n"
        assert (target / "config.json").exists()

    def test_a_requested_verification_that_fails_is_an_error(self, capsys, target, monkeypatch):
        def fail(*arguments):
            raise MemoryError("no memory")

        monkeypatch.setattr("mlx_vlm_moxin.conversion.verify.cost.verify", fail)
        status, _, err = run(capsys, *HF_ARGUMENTS, "--mlx-path", target, "--verify", "--quiet")
        assert status == 1
        assert err == f"error: --verify failed: no memory. The model is whole in {target}\n"
        assert (target / "config.json").exists()

    def test_a_requested_verification_that_finds_damage_is_an_error(self, capsys, target, tmp_path):
        shutil.copy(IMAGES / "photo.png", tmp_path)
        arguments = ["-q", "--q-bits", 2, "--verify", "--verify-images", tmp_path, "--quiet"]
        status, _, err = run(capsys, *HF_ARGUMENTS, "--mlx-path", target, *arguments)
        assert status == 1
        assert err.splitlines()[-1].startswith("error: --verify: the result looks broken")
        assert "2 bits are too few" in (target / "README.md").read_text()

    def test_sweep_has_its_own_command_line(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["sweep", "--help"])
        assert stop.value.code == 0
        assert "python -m mlx_vlm_moxin convert sweep" in capsys.readouterr().out


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "no/such/place"], "neither a local directory nor a Hub repository"),
            (["--model", str(IMAGES)], "is not a Moxin checkpoint: found no config.json"),
            ([*HF_ARGUMENTS, "-q", "--q-group-size", 256], "has 32, 64, 128"),
            ([*HF_ARGUMENTS, "-q", "--q-bits", 7], "has 2, 3, 4, 5, 6, 8"),
            ([*HF_ARGUMENTS, "--q-bits", 8], "--q-bits would have no effect without -q"),
            ([*HF_ARGUMENTS, "-q", "-d"], "either --quantize or --dequantize"),
            ([*HF_ARGUMENTS, "-d"], "nothing to dequantise"),
            ([*HF_ARGUMENTS, "--verify-images", "nowhere"], "No directory nowhere"),
            ([*HF_ARGUMENTS, "--dino", "x"], "--clip, --in1k and --llm are for native"),
            ([*HF_ARGUMENTS, "--upload-repo", "a/b/c"], "a/b/c"),
        ],
    )
    def test_bad_input_is_one_line_and_leaves_nothing(self, capsys, target, arguments, message):
        assert message in error_of(capsys, target, *arguments)

    def test_a_damaged_source_is_named(self, capsys, tmp_path, target):
        source = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
        (source / "model-00003-of-00003.safetensors").write_bytes(b"<html>")
        message = error_of(capsys, target, "--model", source)
        assert "model-00003-of-00003.safetensors is damaged" in message

    def test_nan_in_the_source_is_named(self, capsys, tmp_path, target):
        def change(weights):
            weights["projector.fc2.bias"][0] = float("nan")

        source = with_weights(tmp_path / "source", change)
        message = error_of(capsys, target, "--model", source)
        assert "multi_modal_projector.fc2.bias has values that are not finite" in message

    def test_an_existing_target_is_kept(self, capsys, target):
        target.mkdir()
        (target / "config.json").write_text("{}")
        assert "give --overwrite" in error_of(capsys, target, *HF_ARGUMENTS)
        assert (target / "config.json").read_text() == "{}"

    def test_a_missing_token_is_found_before_converting(self, capsys, target, monkeypatch):
        monkeypatch.setattr("mlx_vlm_moxin.conversion.command_line.get_token", lambda: None)
        message = error_of(capsys, target, *HF_ARGUMENTS, "--upload-repo", "me/model")
        assert "no Hugging Face token" in message

    def test_a_target_without_write_permission_is_named(self, capsys, target, monkeypatch):
        def refuse(*arguments, **kwargs):
            raise PermissionError(13, "Permission denied", str(target))

        monkeypatch.setattr("mlx_vlm_moxin.checkpoints.staging.Path.mkdir", refuse)
        assert "Permission denied" in error_of(capsys, target, *HF_ARGUMENTS)

    def test_wrong_usage_has_argparses_status(self, capsys):
        for arguments in ([], ["--model", "x", "--q-mode", "q4_k_m"]):
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
