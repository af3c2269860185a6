"""Sources and towers by the names of their Hub repositories."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import mlx.core as mx
import pytest
from huggingface_hub import constants
from mlx_vlm.models.moxin.towers import DINO_ID, SIGLIP_ID
from source_checkpoints import HUB, NATIVE, write_ominix
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints.language_models import LANGUAGE_MODELS
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.checkpoints.sources.towers import TOWER_FILES
from mlx_vlm_moxin.conversion.source_files import SourceFiles

LLM_REPOSITORY = LANGUAGE_MODELS["moxin-7b-pure"].repository
DINO_REPOSITORY = TOWER_FILES[DINO_ID].repository
SIGLIP_REPOSITORY = TOWER_FILES[SIGLIP_ID].repository
DINO, SIGLIP = (str(HUB / f"{name}.safetensors") for name in ("dino", "siglip"))
NATIVE_CONTENT = {
    str(path.relative_to(NATIVE)): path.read_bytes() for path in NATIVE.rglob("*") if path.is_file()
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A local server with the Hub's endpoints that a download uses.

    Attributes:
        files: repository -> path -> content.
        asked: paths that were downloaded, as ``repository/path``.
        gated: repositories that may not be read.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.gated: set[str] = set()

    def add(self, repository: str, directory: Path) -> None:
        """All files of a directory."""
        self.files[repository] = {
            str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(self.path.split("?")[0]).removeprefix("/api/models").strip("/")
        repository = "/".join(path.split("/")[:2])
        rest = path.split("/")[2:]
        files = self.hub.files.get(repository)
        if files is None:
            self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif repository in self.hub.gated:
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif rest[:1] == ["resolve"]:
            self.resolve(repository, "/".join(rest[2:]))
        elif rest[1:2] and rest[1] not in ("main", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="No such revision")
        elif rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{len(content):040x}"}
                for name, content in files.items()
            ]
            self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    def do_HEAD(self):
        self.do_GET()

    def resolve(self, repository: str, name: str) -> None:
        content = self.hub.files[repository].get(name)
        if content is None:
            self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            return
        if self.command == "GET":
            self.hub.asked.append(f"{repository}/{name}")
        tag = f'"{len(content)}-{abs(hash(content))}"'
        self.answer(200, content, X_Repo_Commit=COMMIT, ETag=tag)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # This module copied the default when it was imported.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_and_settings_of_a_repository_are_downloaded(hub):
    hub.add("owner/moxin", HF_CHECKPOINT)
    hub.files["owner/moxin"]["modeling.py"] = b"raise SystemExit"
    hub.files["owner/moxin"]["onnx/model.safetensors"] = b"large"
    hub.files["owner/moxin"]["original/config.json"] = b"{}"
    source = open_source("owner/moxin")
    local = open_source(str(HF_CHECKPOINT))
    assert source.kind == local.kind
    name = "language_model.lm_head.weight"
    assert mx.array_equal(source.tensors[name].load(), local.tensors[name].load())
    assert not any("modeling" in path or "/o" in path for path in hub.asked)
    assert SourceFiles("owner/moxin").provenance(source).base_model == "owner/moxin"
    assert SourceFiles(str(HF_CHECKPOINT)).provenance(local).base_model is None


def test_the_card_of_a_repository_is_read(hub):
    hub.add("owner/moxin", HF_CHECKPOINT)
    hub.files["owner/moxin"]["README.md"] = b"---\nlicense: mit\n---\n"
    files = SourceFiles("owner/moxin")
    assert files.provenance(files.open()).license == "mit"


def test_an_ominix_repository_is_downloaded(hub, tmp_path):
    hub.add("owner/8bit", write_ominix(tmp_path / "x"))
    assert open_source("owner/8bit").quantization["bits"] == 8


def test_a_native_repository_fetches_towers_and_tokenizer(hub, tmp_path):
    hub.add("owner/native", NATIVE)
    hub.files["owner/native"]["checkpoints/step-000100.pt"] = b"older"
    hub.add(LLM_REPOSITORY, HUB / "llm")
    hub.files[LLM_REPOSITORY]["model.safetensors"] = b"large"
    hub.files[DINO_REPOSITORY] = {
        "model.safetensors": (HUB / "dino.safetensors").read_bytes(),
        "pytorch_model.bin": b"the same again",
    }
    timm = mx.load(str(HUB / "siglip.safetensors"))
    open_clip = tmp_path / "open_clip.safetensors"
    weights = {f"visual.trunk.{name}": value for name, value in timm.items()}
    mx.save_safetensors(str(open_clip), weights)
    hub.files[SIGLIP_REPOSITORY] = {
        "open_clip_pytorch_model.bin": b"the same again",
        "open_clip_model.safetensors": open_clip.read_bytes(),
    }
    source = open_source("owner/native")
    assert source.config.text_config.rms_norm_eps == 1e-5
    name = "vision_tower.siglip.blocks.0.mlp.fc1.weight"
    assert mx.array_equal(source.tensors[name].load(), timm["blocks.0.mlp.fc1.weight"])
    wanted = ("latest-checkpoint.pt", ".json", "/model.safetensors", "open_clip_model.safetensors")
    assert all(path.endswith(wanted) for path in hub.asked)
    assert f"{LLM_REPOSITORY}/model.safetensors" not in hub.asked


def test_of_a_repository_with_a_folder_per_model_only_that_folder_is_downloaded(hub):
    model = "prism-moxin-dinosiglip-224px+7b"
    hub.add("TRI-ML/prismatic-vlms", NATIVE)
    files = hub.files["TRI-ML/prismatic-vlms"]
    for folder in (model, model + "-x", "llama2+7b"):
        files.update({f"{folder}/{name}": content for name, content in NATIVE_CONTENT.items()})
    files[f"{model}/sub/config.json"] = b"{}"
    files[f"{model}/run-metrics.jsonl"] = b"{}"
    name = f"TRI-ML/prismatic-vlms/{model}"
    files_given = SourceFiles(name, dino=DINO, siglip=SIGLIP, llm=str(HUB / "llm"))
    source = files_given.open()
    assert source.tensors.keys() == open_source(str(HF_CHECKPOINT)).tensors.keys()
    downloaded = {f"{name}/{file}" for file in ("config.json", "checkpoints/latest-checkpoint.pt")}
    assert set(hub.asked) == downloaded
    assert files_given.provenance(source).base_model == "TRI-ML/prismatic-vlms"
    with pytest.raises(FileNotFoundError, match=r"prismatic-vlms has no folder llama3\+7b"):
        open_source("TRI-ML/prismatic-vlms/llama3+7b")


def test_without_a_latest_checkpoint_the_last_step_is_downloaded(hub, monkeypatch):
    checkpoint = NATIVE_CONTENT["checkpoints/latest-checkpoint.pt"]
    names = [f"step-{step}-epoch-1-loss=0.25.pt" for step in ("000900", "1000", "000020")]
    hub.files["owner/run"] = {f"checkpoints/{name}": b"older" for name in names}
    hub.files["owner/run"]["checkpoints/step-1000-epoch-1-loss=0.25.pt"] = checkpoint
    hub.files["owner/run"]["config.json"] = NATIVE_CONTENT["config.json"]
    towers = {"dino": DINO, "siglip": SIGLIP}
    source = open_source("owner/run", towers=towers, llm=str(HUB / "llm"))
    assert source.tensors.keys() == open_source(str(HF_CHECKPOINT)).tensors.keys()
    assert sorted(hub.asked) == [
        "owner/run/checkpoints/step-1000-epoch-1-loss=0.25.pt",
        "owner/run/config.json",
    ]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_source("owner/run", towers=towers, llm=str(HUB / "llm")).tensors
    hub.files["owner/none"] = {"config.json": NATIVE_CONTENT["config.json"]}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match=r"owner/none has no checkpoints/latest-check"):
        open_source("owner/none")


def test_what_is_in_the_cache_needs_no_network(hub, monkeypatch):
    hub.add("owner/moxin", HF_CHECKPOINT)
    open_source("owner/moxin")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert open_source("owner/moxin").tensors
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/nothing", None, "the Hub has no such repository, or none that you may read"),
        ("owner/moxin", "v9", "The Hub repository owner/moxin has no revision v9"),
        ("owner/gated", None, "is gated; ask for access on its page"),
    ],
)
def test_repositories_that_cannot_be_read_are_named(hub, name, revision, message):
    for repository in ("owner/moxin", "owner/gated"):
        hub.add(repository, HF_CHECKPOINT)
    hub.gated.add("owner/gated")
    with pytest.raises(OSError, match=message) as error:
        open_source(name, revision)
    assert "\n" not in str(error.value)


def test_a_repository_without_a_tower_is_refused(hub):
    hub.add("owner/native", NATIVE)
    hub.files[DINO_REPOSITORY] = {"readme.md": b""}
    with pytest.raises(FileNotFoundError, match=r"has none of the files model\.safetensors"):
        open_source("owner/native")


def test_a_missing_network_is_named(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"cannot be downloaded .* run the same command again"):
        open_source("owner/moxin")
