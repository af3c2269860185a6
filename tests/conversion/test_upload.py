"""Uploads to a local Hub server, through the real client in a separate process."""

import json
import os
import subprocess

import numpy as np
import pytest
from hub_server import TOKEN, USER, Hub
from safetensors.numpy import save_file
from warm_processes import command as warm_command
from warm_processes import offline

from mlx_vlm_moxin.conversion.upload import UploadError, upload

REPO = f"{USER}/Moxin-7B-VLM-4bit"
# The client reads its settings when it is imported. A process that starts warm has imported it: it
# forgets that, and imports it again with its own settings. The client waits seconds between
# retries; in the tests it does not.
CLIENT = (
    "import sys, time; time.sleep = lambda s: None; "
    "hub = [n for n in sys.modules if n.partition('.')[0] == 'huggingface_hub']; "
    "[sys.modules.pop(n) for n in hub]; "
    "from mlx_vlm_moxin.conversion.upload import main; "
)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def model(tmp_path):
    """A directory as a conversion writes it, with one extra file that is not the model's."""
    directory = tmp_path / "my model"
    directory.mkdir()
    generator = np.random.default_rng(0)
    for shard in SHARDS:
        tensor = generator.integers(0, 256, size=200_000, dtype=np.uint8)
        save_file({shard: tensor}, directory / shard)
    (directory / "config.json").write_text(json.dumps({"model_type": "moxin"}))
    (directory / "model.safetensors.index.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("In: {{ message }}\nOut:")
    (directory / "README.md").write_text("---\nlibrary_name: mlx\n---\n\n# Model\n")
    (directory / "notes.txt").write_text("private")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "state.json").write_text("{}")
    return directory


def uploaded_files(model) -> dict[str, bytes]:
    names = ("config.json", "model.safetensors.index.json", "chat_template.jinja", "README.md")
    return {name: (model / name).read_bytes() for name in (*names, *SHARDS)}


def client(hub, home, *arguments, token=TOKEN, **environment) -> dict:
    """Arguments of ``subprocess`` for the upload command against ``hub``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    clean |= {"HF_HUB_DISABLE_XET": "1"}
    if token is not None:
        clean["HF_TOKEN"] = token
    code = CLIENT + "sys.exit(main())"
    return {
        "args": warm_command("-c", code, *arguments, environment=offline(os.environ)),
        "env": clean | environment,
        "text": True,
    }


@pytest.fixture
def run_upload(hub, tmp_path):
    """Run an upload to its end and check that its output does not contain the token."""

    def run(*arguments, **keywords) -> subprocess.CompletedProcess:
        command = client(hub, tmp_path / "home", *arguments, **keywords)
        result = subprocess.run(**command, capture_output=True, timeout=120)
        assert TOKEN not in result.stdout + result.stderr
        return result

    return run


def error_line(result: subprocess.CompletedProcess) -> str:
    """The last line of a failed run, which must be its only error, without a traceback."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def committed(hub) -> dict[str, bytes]:
    files = hub.files.get(REPO, {})
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def test_small_and_large_files_arrive_byte_for_byte_in_one_commit(hub, model, run_upload):
    result = run_upload(model, REPO)
    assert result.returncode == 0, result.stderr
    assert committed(hub) == uploaded_files(model)
    assert hub.commits[REPO] == 1
    assert f"{hub.url}/{REPO}" in result.stdout


def test_through_xet_the_same_bytes_arrive_in_one_commit(hub, model, run_upload):
    pytest.importorskip("hf_xet")
    (model / SHARDS[1]).unlink()
    result = run_upload(model, REPO, "--quiet", HF_HUB_DISABLE_XET="0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert hub.requests["POST", "xorb"] == 1
    assert hub.files[REPO][SHARDS[0]] == (model / SHARDS[0]).read_bytes()
    assert hub.commits[REPO] == 1


def test_a_token_that_xet_refuses_is_named(hub, model, run_upload):
    pytest.importorskip("hf_xet")
    hub.fail = lambda method, kind, count: 403 if kind == "xet_token" else None
    line = error_line(run_upload(model, REPO, HF_HUB_DISABLE_XET="0"))
    assert f"may not write to {REPO} (403)" in line


def test_a_name_without_a_namespace_goes_to_the_tokens_user(hub, model, run_upload):
    assert run_upload(model, "Moxin-7B-VLM-4bit").returncode == 0
    assert committed(hub) == uploaded_files(model)


def test_quiet_prints_nothing(hub, model, run_upload):
    result = run_upload(model, REPO, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_progress_is_shown_by_default(hub, model, run_upload):
    assert SHARDS[0] in run_upload(model, REPO).stderr


@pytest.mark.parametrize("failure", [500, pytest.param("drop", marks=pytest.mark.slow)])
def test_a_failed_upload_resumes_with_what_is_missing(hub, model, run_upload, failure):
    """The second large file fails for good; the run after it sends that one alone."""
    arrived = []

    def fail(method, kind, count):
        if kind == "object" and (arrived or count > 1):
            return failure
        arrived.extend([kind] if kind == "object" else [])
        return None

    hub.fail = fail
    line = error_line(run_upload(model, REPO))
    assert f"python -m mlx_vlm_moxin upload '{model}' {REPO}" in line
    assert ("500" if failure == 500 else "connection") in line
    assert committed(hub) == {}
    assert len(hub.objects) == 1

    hub.fail = lambda *request: None
    hub.requests.clear()
    assert run_upload(model, REPO).returncode == 0
    assert committed(hub) == uploaded_files(model)
    assert hub.requests["PUT", "object"] == 1


def test_an_upload_killed_in_the_middle_resumes(hub, model, run_upload, tmp_path):
    hub.fail = lambda method, kind, count: "stall" if kind == "object" and count > 1 else None
    command = client(hub, tmp_path / "home", model, REPO, "--quiet")
    with subprocess.Popen(**command) as process:
        assert hub.stalled.wait(60)
        process.kill()
    assert committed(hub) == {}
    hub.fail = lambda *request: None
    assert run_upload(model, REPO).returncode == 0
    assert committed(hub) == uploaded_files(model)


def test_a_failed_commit_resumes_without_sending_large_files_again(hub, model, run_upload):
    hub.fail = lambda method, kind, count: 500 if kind == "commit" else None
    assert "500" in error_line(run_upload(model, REPO))
    assert committed(hub) == {}
    hub.fail = lambda *request: None
    hub.requests.clear()
    assert run_upload(model, REPO).returncode == 0
    assert committed(hub) == uploaded_files(model)
    assert hub.requests["PUT", "object"] == 0


def test_a_short_failure_is_retried_within_the_run(hub, model, run_upload):
    hub.fail = lambda method, kind, count: 503 if kind == "object" and count == 1 else None
    assert run_upload(model, REPO).returncode == 0
    assert committed(hub) == uploaded_files(model)


def test_an_upload_of_what_is_there_commits_nothing(hub, model, run_upload):
    run_upload(model, REPO)
    assert run_upload(model, REPO).returncode == 0
    assert hub.commits[REPO] == 1


def test_shards_of_an_earlier_upload_go_and_other_files_stay(hub, model, run_upload):
    hub.files[REPO] = {
        "model-00003-of-00003.safetensors": b"old",
        "adapters.safetensors": b"other",
        "LICENSE": b"text",
    }
    assert run_upload(model, REPO).returncode == 0
    other = {"adapters.safetensors": b"other", "LICENSE": b"text"}
    assert hub.files[REPO] == uploaded_files(model) | other


def test_without_a_token_nothing_is_requested_from_the_hub(hub, model, run_upload):
    line = error_line(run_upload(model, REPO, token=None))
    assert "hf auth login" in line
    assert not hub.requests


def test_a_wrong_token_is_found_before_anything_is_sent(hub, model, run_upload):
    wrong = "hf_wrongTokenThatMustNotBePrintedEither"
    result = run_upload(model, REPO, token=wrong)
    line = error_line(result)
    assert "401" in line
    assert "hf auth login" in line
    assert wrong not in result.stdout + result.stderr
    assert hub.files == {}


def test_a_namespace_that_the_token_may_not_write_to_is_named(hub, model, run_upload):
    hub.forbidden.add("mlx-community/Moxin")
    line = error_line(run_upload(model, "mlx-community/Moxin"))
    assert "403" in line
    assert "mlx-community/Moxin" in line
    assert not hub.objects


def test_a_hub_that_echoes_the_token_does_not_get_it_printed(hub, model, run_upload):
    hub.fail = lambda method, kind, count: 400 if kind == "preupload" else None
    line = error_line(run_upload(model, REPO))
    assert "400" in line
    assert "[token]" in line


def test_debug_output_of_the_client_does_not_hold_the_token(hub, model, run_upload):
    assert run_upload(model, REPO, HF_DEBUG="1", HF_HUB_VERBOSITY="debug").returncode == 0


def test_an_unreachable_hub_is_named_with_the_next_step(hub, model, run_upload):
    hub.__exit__()
    line = error_line(run_upload(model, REPO))
    assert hub.url in line
    assert "python -m mlx_vlm_moxin upload" in line


def test_offline_mode_is_named(hub, model, run_upload):
    assert "HF_HUB_OFFLINE" in error_line(run_upload(model, REPO, HF_HUB_OFFLINE="1"))
    assert not hub.requests


def test_a_card_that_the_hub_refuses_fails_before_large_files_are_sent(hub, model, run_upload):
    (model / "README.md").write_text("no metadata")
    assert "no metadata" in error_line(run_upload(model, REPO))
    assert not hub.objects


@pytest.mark.parametrize("missing", ["config.json", "*.safetensors"])
def test_a_directory_without_a_model_is_refused(model, missing):
    for file in model.glob(missing):
        file.unlink()
    with pytest.raises(UploadError, match="holds no converted model"):
        upload(model, REPO)


@pytest.mark.parametrize("name", ["a/b/c", "has space", "../up", ""])
def test_a_name_that_is_no_repository_is_refused(model, name):
    with pytest.raises(UploadError, match="user-or-organisation/name"):
        upload(model, name)
