"""mlx-vlm and mlx-lm still call the replacements of the table.

For every row of the table one ordinary use of mlx-vlm, through its public entry points, must
reach the name that the row replaces. A name that still exists but is not called any more fails
here, in the version matrix.
"""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.optimizers as optim
import mlx_lm.models.moxin  # applies its row of the table
import mlx_vlm
import pytest
from bodies import CHAT, MESSAGES_API, RESPONSES, body, picture_data
from fastapi import FastAPI
from mlx_vlm import apply_chat_template
from mlx_vlm.trainer.api import Trainer
from mlx_vlm.trainer.datasets import PreferenceVisionDataset, VisionDataset
from mlx_vlm.trainer.peft import get_peft_model
from mlx_vlm.trainer.vlm import grpo, sft
from mlx_vlm.trainer.vlm.config import VLMTrainingArgs
from mlx_vlm.utils import load_processor
from starlette.testclient import TestClient
from support import HF_CHECKPOINT, image_path

from mlx_vlm_moxin.plugin.upstream import ON_USE, UPSTREAM, Replacement

MODEL = str(HF_CHECKPOINT)
# Names that are imported, not replaced; test_upstream.py checks that they exist.
IMPORTED = {
    "mlx_vlm.server._INHERIT_ADAPTER",
    "mlx_vlm.server._build_gen_args",
    "mlx_vlm.server._require_management_api_key",
    "mlx_vlm.server.app.add_server_header",
    "mlx_vlm.server.generation._PositionedTargetSampler",
    "mlx_vlm.server.generation._position_seed",
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """mlx-vlm's server in this process, with Moxin loaded."""
    server = importlib.import_module("mlx_vlm.server")
    os.environ["MLX_VLM_PRELOAD_MODEL"] = MODEL
    with TestClient(server.app, raise_server_exceptions=False) as client:
        yield client
        # A thread with MLX streams that outlives the main thread would abort the process.
        server.unload_model_sync()


def ask(client: TestClient, endpoint: str = CHAT, *pictures: str, **parameters: Any) -> int:
    """The status of the answer to a request."""
    request = body(endpoint, MODEL, "What is shown?", *pictures, max_tokens=2, **parameters)
    return client.post(endpoint, json=request).status_code


def format_messages(images: int = 1) -> str:
    processor, config = load_processor(HF_CHECKPOINT), {"model_type": "prismatic"}
    return apply_chat_template(processor, config, "What?", num_images=images)


def train_on(dataset: Callable, **row: Any) -> None:
    config = {"model_type": "prismatic", "image_token_index": 1}
    row = {"images": [image_path("photo")], **row}
    assert dataset([row], config, load_processor(HF_CHECKPOINT))[0]


def mask_logits() -> None:
    from mlx_vlm.structured import build_json_schema_logits_processor

    tokenizer = load_processor(HF_CHECKPOINT).tokenizer
    processor = build_json_schema_logits_processor(tokenizer, {"type": "boolean"})
    logits = mx.zeros((1, len(tokenizer)))
    assert mx.isinf(processor(mx.array([1]), logits)).any()


def two_pictures() -> None:
    with suppress(ValueError):
        format_messages(images=2)


def ask_once(**options: Any) -> None:
    model, processor = mlx_vlm.load(MODEL)
    pictures = [image_path("photo")]
    mlx_vlm.generate(model, processor, "In: What?\nOut:", pictures, max_tokens=1, **options)


def ask_batch() -> None:
    model, processor = mlx_vlm.load(MODEL)
    pictures = [image_path("photo")]
    mlx_vlm.batch_generate(model, processor, pictures, prompts=["What?"], max_tokens=1)


def train_a_step() -> None:
    model, processor = mlx_vlm.load(MODEL)
    get_peft_model(model, rank=1, alpha=1, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        args = VLMTrainingArgs(iters=1, adapter_file=f"{folder}/adapters.safetensors")
        Trainer(
            model,
            args,
            optimizer=optim.SGD(1e-3),
            train_dataset=[{"images": [image_path("photo")], "messages": TURNS}],
            processing_class=processor,
        ).train()


def convert_once(**options: Any) -> None:
    """Convert with stock mlx-vlm; an upload fails, since there is no token here."""
    with (
        TemporaryDirectory() as folder,
        patch("mlx_vlm_moxin.conversion.upload.get_token", lambda: None),
        suppress(OSError),
    ):
        mlx_vlm.convert(MODEL, f"{folder}/x", **options)


def load_no_adapter() -> None:
    with suppress(OSError):
        mlx_vlm.load(MODEL, lazy=True, adapter_path="nowhere")


TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog"}]
ALONE: dict[str, Callable[[], Any]] = {
    "transformers.AutoProcessor.from_pretrained": lambda: load_processor(HF_CHECKPOINT),
    "mlx_vlm.prompt_utils.MODEL_CONFIG": format_messages,
    "mlx_vlm.prompt_utils.SINGLE_IMAGE_ONLY_MODELS": two_pictures,
    "mlx_vlm.trainer.datasets.next_token.NATIVE_PREPROCESS_MODELS": lambda: train_on(
        VisionDataset, messages=TURNS
    ),
    "mlx_vlm.trainer.datasets.preference.NATIVE_PREPROCESS_MODELS": lambda: train_on(
        PreferenceVisionDataset, chosen=TURNS, rejected=TURNS
    ),
    "mlx_vlm.trainer.vlm.sft.dataset._resolve_media": lambda: train_on(
        sft.dataset.VisionDataset, messages=TURNS
    ),
    "mlx_vlm.trainer.vlm.grpo.dataset._resolve_media": lambda: train_on(
        grpo.dataset.GRPOVisionDataset, prompt="What?", answer="A dog"
    ),
    "mlx_vlm.trainer.common.engine.train": train_a_step,
    "mlx_vlm.utils.process_image": ask_once,
    "mlx_vlm.utils.load_model_weights": lambda: mlx_vlm.load(MODEL, lazy=True),
    "mlx_vlm.utils.create_model_card": convert_once,
    "mlx_vlm.utils.upload_to_hub": lambda: convert_once(upload_repo="me/model"),
    "mlx_vlm.generate.dispatch.generate": ask_once,
    "mlx_vlm.generate.dispatch.stream_generate": ask_once,
    "mlx_vlm.generate.dispatch._prepare_generation_inputs": ask_once,
    "mlx_vlm.generate.ar.batch_generate": ask_batch,
    "mlx_vlm.generate.ar.apply_chat_template": ask_batch,
    "mlx_vlm.trainer.vlm.sft.runtime.make_task": train_a_step,
    "mlx_vlm.utils.apply_lora_layers": load_no_adapter,
    "mlx_vlm.structured._apply_llguidance_mask": mask_logits,
    "mlx_vlm.utils.get_model_path": lambda: mlx_vlm.load(MODEL, lazy=True),
    "mlx_vlm.utils.load_model": lambda: mlx_vlm.load(MODEL),
    "mlx_lm.utils._load_tokenizer": lambda: mlx_lm.load(MODEL, lazy=True),
}


def fail_in_messages(client: TestClient) -> None:
    """A request to ``/v1/messages`` during which the generator fails."""
    generator = importlib.import_module("mlx_vlm.server").runtime.response_generator
    with patch.object(generator, "generate", side_effect=RuntimeError("no memory")):
        ask(client, MESSAGES_API)


GENERATION = "mlx_vlm.server.generation.ResponseGenerator."
SERVED: dict[str, Callable[[TestClient], Any]] = {
    "mlx_vlm.server.app": lambda client: client.get("/act"),
    "mlx_vlm.server.app._decode_token": lambda client: ask(client, logprobs=True),
    "mlx_vlm.server.anthropic._anthropic_error_response": lambda client: client.post(
        MESSAGES_API, json={"model": MODEL}
    ),
    "mlx_vlm.server.anthropic.traceback": fail_in_messages,
    "mlx_vlm.server.openai._parse_response_request": lambda client: ask(client, RESPONSES),
    "mlx_vlm.server.request_normalization._build_gen_args": ask,
    "mlx_vlm.server.request_normalization._build_structured_logits_processors": ask,
    "mlx_vlm.server.get_cached_model": ask,
    GENERATION + "generate": ask,
    GENERATION + "validate_context_budget": lambda client: ask(
        client, CHAT, picture_data("photo"), stream=True
    ),
    GENERATION + "_preprocess_request": ask,
    GENERATION + "_cpu_preprocess": ask,
    GENERATION + "_make_sampler": ask,
    GENERATION + "_gpu_embed": ask,
    GENERATION + "_collect_pending_requests": ask,
    GENERATION + "_log_prefill_started": ask,
    GENERATION + "_step": ask,
    "mlx_vlm.server.openai.asyncio": lambda client: ask(client, stream=True),
    "mlx_vlm.server.anthropic.asyncio": lambda client: ask(client, MESSAGES_API, stream=True),
    "mlx_vlm.server.openai.gc": ask,
    "mlx_vlm.server.anthropic.gc": lambda client: ask(client, MESSAGES_API),
}


def row_id(row: Replacement) -> str:
    return f"{row.module}.{row.name}"


CALLED = [row for row in UPSTREAM if row.when != ON_USE and row_id(row) not in IMPORTED]


def test_every_row_has_a_use():
    assert {row_id(row) for row in CALLED} == {*ALONE, *SERVED}, "add one to ALONE or SERVED"


def counted(function: Callable, calls: list[str]) -> Callable:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return call


def counted_table(table: dict | set, calls: list[str]) -> dict | set:
    """A copy that counts lookups of our model types."""

    class Counted(type(table)):
        def __contains__(self, key: object) -> bool:
            calls.append(f"{key} in")
            return super().__contains__(key)

        def get(self, key: object, *default: Any) -> Any:
            calls.append(f"get {key}")
            return super().get(key, *default)

        def __getitem__(self, key: object) -> Any:
            calls.append(f"get {key}")
            return super().__getitem__(key)

    return Counted(table)


@pytest.fixture
def calls(row, monkeypatch) -> list[str]:
    """Records calls of the replacement of ``row`` from now on."""
    found: list[str] = []
    *path, name = row.name.split(".")
    owner = importlib.import_module(row.module)
    for part in path:
        owner = getattr(owner, part)
    value = getattr(owner, name)
    if isinstance(value, FastAPI):
        watch_application(value, monkeypatch, found)
    elif row.make is None:
        watch_method(name, monkeypatch, found)
    elif isinstance(value, (dict, set)):
        monkeypatch.setattr(owner, name, counted_table(value, found))
    elif "_call" in (getattr(value, "__kwdefaults__", None) or {}):
        # Changed in place, see plugin/in_place.py.
        monkeypatch.setitem(
            value.__kwdefaults__, "_call", counted(value.__kwdefaults__["_call"], found)
        )
    elif isinstance(value, SimpleNamespace):
        function = {"asyncio": "to_thread", "gc": "collect"}.get(name, "print_exc")
        monkeypatch.setattr(value, function, counted(getattr(value, function), found))
    elif path:
        monkeypatch.setattr(owner, name, staticmethod(counted(value, found)))
    else:
        monkeypatch.setattr(owner, name, counted(value, found))
    return found


def watch_application(app: FastAPI, monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Count the calls of this package's exception handlers and routes."""
    for key, handler in app.exception_handlers.items():
        if handler.__module__.startswith("mlx_vlm_moxin."):
            monkeypatch.setitem(app.exception_handlers, key, counted_async(handler, calls))
    for route in app.routes:
        # Included routers have none.
        endpoint = getattr(route, "endpoint", None)
        if endpoint is not None and endpoint.__module__.startswith("mlx_vlm_moxin."):
            monkeypatch.setattr(route.dependant, "call", counted(route.dependant.call, calls))
    monkeypatch.setattr(app, "middleware_stack", None)


def watch_method(name: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Count the calls of a method of mlx-vlm's generator that this package overrides."""
    from mlx_vlm_moxin.plugin.server.generator import MoxinResponseGenerator

    owner = next(kind for kind in MoxinResponseGenerator.__mro__ if name in vars(kind))
    assert owner.__module__.startswith("mlx_vlm_moxin.")
    monkeypatch.setattr(owner, name, counted(vars(owner)[name], calls))


def counted_async(handler: Callable, calls: list[str]) -> Callable:
    @wraps(handler)
    async def call(*args: Any) -> Any:
        calls.append(handler.__name__)
        return await handler(*args)

    return call


@pytest.mark.parametrize("row", [row for row in CALLED if row_id(row) in ALONE], ids=row_id)
def test_a_use_of_the_library_reaches_the_replacement(row, calls):
    ALONE[row_id(row)]()
    assert calls


@pytest.mark.parametrize("row", [row for row in CALLED if row_id(row) in SERVED], ids=row_id)
def test_a_request_reaches_the_replacement(client, row, calls):
    SERVED[row_id(row)](client)
    assert calls
