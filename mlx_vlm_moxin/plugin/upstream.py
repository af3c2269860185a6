"""The names of mlx-vlm, mlx-lm and transformers that this package replaces or adds to.

Each name is one row of ``UPSTREAM``; ``replacements.py`` applies them.
tests/plugin/test_upstream_calls.py checks for every row that an ordinary use of mlx-vlm still
calls the replacement.
"""

from dataclasses import dataclass
from functools import partial

MLX_VLM = ">=0.7.9,<0.8"
MLX_LM = ">=0.31,<0.33"
TRANSFORMERS = ">=5.14"

# When the rows are applied: with the model, with the decoder for mlx-lm, or by a command of this
# package that loads a model. ON_USE: never, the name is imported where it is used.
MODEL = "model"
DECODER = "decoder"
COMMAND = "command"
ON_USE = "on use"


@dataclass(frozen=True)
class Replacement:
    """One name that is replaced or added to.

    Attributes:
        module: the module that holds the name.
        name: the name, dotted for an attribute of a class.
        make: ``module:function`` below ``mlx_vlm_moxin.plugin``. The function receives the
            object under the name and returns the one to put there: a wrapper, or the same
            object with entries added. None: nothing is replaced; the name is private, this
            package imports or overrides it, and so it must exist.
        why: what mlx-vlm does without it.
        versions: versions of the package that need the row; with others it is not applied.
        when: ``MODEL``, ``DECODER``, ``COMMAND`` or ``ON_USE``.
        after: module whose import applies the row, if not ``module``.
    """

    module: str
    name: str
    make: str | None
    why: str
    versions: str = MLX_VLM
    when: str = MODEL
    after: str | None = None

    @property
    def distribution(self) -> str:
        """The package on the index that ``module`` belongs to."""
        return self.module.partition(".")[0].replace("_", "-")


_on_server = partial(Replacement, after="mlx_vlm.server")

UPSTREAM = (
    Replacement(
        "transformers",
        "AutoProcessor.from_pretrained",
        "auto_processor:from_pretrained",
        "mlx-vlm's own patch turns a processor that fails into a bare tokenizer",
        versions=TRANSFORMERS,
    ),
    Replacement(
        "mlx_vlm.prompt_utils",
        "MODEL_CONFIG",
        "model_tables:message_formats",
        "a model type without a message format is refused",
    ),
    Replacement(
        "mlx_vlm.prompt_utils",
        "SINGLE_IMAGE_ONLY_MODELS",
        "model_tables:model_types",
        "a second picture would reach the processor",
    ),
    Replacement(
        "mlx_vlm.trainer.datasets.next_token",
        "NATIVE_PREPROCESS_MODELS",
        "model_tables:model_types",
        "a snapshot of MODEL_CONFIG, taken when the module is imported",
    ),
    Replacement(
        "mlx_vlm.trainer.datasets.preference",
        "NATIVE_PREPROCESS_MODELS",
        "model_tables:model_types",
        "a snapshot of MODEL_CONFIG, taken when the module is imported",
    ),
    Replacement(
        "mlx_vlm.trainer.vlm.sft.runtime",
        "make_task",
        "action_training:make_task",
        "rows of action data have no messages, and an adapter lacks their statistics",
    ),
    Replacement(
        "mlx_vlm.utils",
        "apply_lora_layers",
        "adapters:apply_lora_layers",
        "an adapter of another rank or base is silently loaded; its statistics are not",
    ),
    Replacement(
        "mlx_vlm.structured",
        "_apply_llguidance_mask",
        "structured_output:mask_function",
        "structured output needs Metal: it fails on MLX's CPU and CUDA backends",
    ),
    Replacement(
        "mlx_vlm.utils",
        "process_image",
        "picture_inputs:process_image",
        "bytes, files, arrays and dictionaries are not supported, and 16-bit grey turns white",
    ),
    Replacement(
        "mlx_vlm.generate.dispatch",
        "stream_generate",
        "picture_inputs:stream_generate",
        "a picture as an array must be in a list",
    ),
    Replacement(
        "mlx_vlm.generate.dispatch",
        "generate",
        "picture_inputs:generate",
        "a PIL image with verbose=True is a TypeError",
    ),
    Replacement(
        "mlx_vlm.generate.ar",
        "batch_generate",
        "picture_inputs:batch_generate",
        "pictures other than paths, URLs and PIL images have no size to be grouped by",
    ),
    Replacement(
        "mlx_vlm.generate.ar",
        "apply_chat_template",
        "batch_prompts:apply_chat_template",
        "batch_generate applies the chat template to prompts that are already formatted",
    ),
    Replacement(
        "mlx_vlm.trainer.vlm.sft.dataset",
        "_resolve_media",
        "picture_inputs:resolve_media",
        "16-bit grey in a training set turns white",
    ),
    Replacement(
        "mlx_vlm.trainer.vlm.grpo.dataset",
        "_resolve_media",
        "picture_inputs:resolve_media",
        "a copy of the name, made when the module is imported",
    ),
    Replacement(
        "mlx_vlm.utils",
        "load_model_weights",
        "before_weights:load_model_weights",
        "an unusable option ends in a traceback or in meaningless text, or is ignored",
    ),
    Replacement(
        "mlx_vlm.utils",
        "create_model_card",
        "stock_card:create_model_card",
        "the card of a converted model does not say that it needs this package",
    ),
    Replacement(
        "mlx_vlm.utils",
        "upload_to_hub",
        "stock_card:upload_to_hub",
        "the upload replaces the card's text by one that says to install only mlx-vlm",
    ),
    Replacement(
        "mlx_vlm.generate.dispatch",
        "_prepare_generation_inputs",
        "command_options:prepare_generation_inputs",
        "a cache smaller than the prompt silently drops visual tokens",
    ),
    Replacement(
        "mlx_vlm.trainer.common.engine",
        "train",
        "training:train",
        "training continues after a loss of NaN, overwrites good weights and ends with status 0",
    ),
    _on_server(
        "mlx_vlm.server",
        "app",
        "server.application:extended",
        "errors of the client are HTTP 500; bodies and pictures have no limits; disconnected "
        "clients are not noticed; there is no GET /v1/models/{id} and no POST /act",
    ),
    _on_server(
        "mlx_vlm.server.anthropic",
        "_anthropic_error_response",
        "server.errors:anthropic_error_response",
        "errors of the client are answered with HTTP 500",
    ),
    _on_server(
        "mlx_vlm.server.openai",
        "_parse_response_request",
        "server.errors:parse_response_request",
        "a body that is not a JSON object is answered with HTTP 500",
    ),
    _on_server(
        "mlx_vlm.server.request_normalization",
        "_build_gen_args",
        "server.parameters:build_gen_args",
        "parameters out of range are ignored or end every running request",
    ),
    _on_server(
        "mlx_vlm.server.request_normalization",
        "_build_structured_logits_processors",
        "server.structured:structured_logits_processors",
        "a schema that the grammar engine cannot use is HTTP 500, or ends every request",
    ),
    _on_server(
        "mlx_vlm.server.app",
        "_decode_token",
        "server.logprobs:decode_token",
        "tokens of log-probabilities lack their space, and split characters lack their bytes",
    ),
    _on_server(
        "mlx_vlm.server.anthropic",
        "traceback",
        "server.log:traceback_module",
        "a refused request is logged with a traceback",
    ),
    _on_server(
        "mlx_vlm.server.openai",
        "asyncio",
        "server.request_threads:asyncio_of_endpoints",
        "with many clients passing each token through a thread takes longer than computing it",
    ),
    _on_server(
        "mlx_vlm.server.anthropic",
        "asyncio",
        "server.request_threads:asyncio_of_endpoints",
        "the same for /v1/messages",
    ),
    _on_server(
        "mlx_vlm.server.openai",
        "gc",
        "server.garbage:gc_of_endpoints",
        "garbage is collected after each answer, while all threads wait",
    ),
    _on_server(
        "mlx_vlm.server.anthropic",
        "gc",
        "server.garbage:gc_of_endpoints",
        "the same for /v1/messages",
    ),
    _on_server(
        "mlx_vlm.server",
        "get_cached_model",
        "server.models:get_cached_model",
        "a request for an unknown model unloads the one that is loaded",
    ),
    _on_server(
        "mlx_vlm.server",
        "_require_management_api_key",
        None,
        "whether a request has the server's key",
    ),
    _on_server(
        "mlx_vlm.server",
        "_build_gen_args",
        None,
        "how a request for /v1/completions becomes arguments",
    ),
    _on_server(
        "mlx_vlm.server",
        "_INHERIT_ADAPTER",
        None,
        "the default of get_cached_model's adapter_path",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator.generate",
        None,
        "stop strings are ignored (server.generator.MoxinResponseGenerator)",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator.validate_context_budget",
        None,
        "the context is no limit on some endpoints",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._preprocess_request",
        None,
        "pictures are read while all other requests wait for the tokenizer",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._cpu_preprocess",
        None,
        "pictures are fetched and decoded to count tokens",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._make_sampler",
        None,
        "a batch is sampled with the settings of its first request",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._log_prefill_started",
        None,
        "what is kept of a running request lacks its sampling settings",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._step",
        None,
        "a batch is sampled with the settings of its first request",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "_position_seed",
        None,
        "how a request's seed gives the keys of its tokens",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "_PositionedTargetSampler",
        None,
        "draws all rows of a batch with one seed",
    ),
    _on_server(
        "mlx_vlm.server.app",
        "add_server_header",
        None,
        "every chunk of a stream passes through a second task",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._gpu_embed",
        None,
        "pictures of requests that join together are computed one by one, and their pixels hashed",
    ),
    _on_server(
        "mlx_vlm.server.generation",
        "ResponseGenerator._collect_pending_requests",
        None,
        "requests of disconnected clients are answered; no other work can use the model",
    ),
    Replacement(
        "mlx_vlm.utils",
        "get_model_path",
        "model_paths:get_model_path",
        "a mistyped directory gives an error about the rules for repository names",
        when=COMMAND,
    ),
    Replacement(
        "mlx_vlm.utils",
        "load_model",
        "quantize_on_load:load_model",
        "mlx-vlm's commands quantise no model while they load it, and load no OminiX export",
        when=COMMAND,
    ),
    Replacement(
        "mlx_vlm.convert",
        "_apply_awq_calibration",
        None,
        "mlx-vlm has no public function that scales weights for AWQ",
        when=ON_USE,
    ),
    Replacement(
        "mlx_lm.utils",
        "_load_tokenizer",
        "mlx_lm.tokenizer:load_tokenizer_of",
        "AutoTokenizer rebuilds the tokenizer, and some ids change",
        versions=MLX_LM,
        when=DECODER,
    ),
)
