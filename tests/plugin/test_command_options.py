"""Options of mlx-vlm's commands that Moxin does not support: one line each, none missing."""

import argparse
import importlib
import json
import os
import shutil
import sys
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_vlm import convert
from mlx_vlm.server import cli
from mlx_vlm.server.runtime import runtime
from mlx_vlm.train import build_parser
from PIL import Image
from support import HF_CHECKPOINT, image_path, run_module

from mlx_vlm_moxin.library import generation_settings
from mlx_vlm_moxin.plugin import option_tables
from mlx_vlm_moxin.plugin.command_errors import input_error

GENERATE, CHAT, SERVER = "mlx_vlm.generate", "mlx_vlm.chat", "mlx_vlm.server.cli"
TRAIN, CONVERT = "mlx_vlm.train", "mlx_vlm.convert"
QUANTIZED, THREE_BITS = "a quantised checkpoint", "one of 3 bits"

GENERATION = [
    ("--temperature -1", "--temperature -1.0 cannot be used: it must be at least 0"),
    ("--temperature nan", "finite"),
    ("--max-tokens 0", "at least 1"),
    ("--max-tokens -1", "at least 1"),
    ("--resize-shape 0", "at least 1 pixel"),
    ("--resize-shape 1 2 3", "must contain 1 or 2 integers"),
    ("--prefill-step-size 0", "at least 1"),
    ("--max-kv-size 0", "at least 5"),
    ("--max-kv-size 8", "a picture alone needs 9 tokens"),
    ("--kv-bits 7", "MLX has 2, 3, 4, 5, 6, 8"),
    ("--kv-bits 8", "--kv-group-size 64 cannot be used: MLX quantises groups of 32, 64 or 128"),
    ("--kv-bits 8 --kv-group-size 16", "heads have 16: turboquant has no groups"),
    ("--kv-bits 0.5", "TurboQuant requires kv_bits >= 1"),
    ("--kv-bits 17.5", "from 1 to 8"),
    ("--kv-bits 3.5 --kv-key-bits 99", "--kv-key-bits 99.0 cannot be used: it must be from 1 to 8"),
    ("--kv-bits 8 --kv-value-bits 4", "differ with the turboquant scheme alone"),
    ("--kv-bits 3.5 --max-kv-size 64", "a cache of limited size"),
    ("--kv-key-bits 3", "no effect without --kv-bits"),
    ("--kv-value-scheme turboquant", "no effect without --kv-bits"),
    ("--kv-bits 3.5 --quantized-kv-start -1", "at least 0"),
]
SAMPLING = [
    ("--top-p 5", "from 0 to 1"),
    ("--top-k 100000", "from 0 to 575"),
    ("--top-k 576", "from 0 to 575"),
    ("--top-k -1", "from 0 to 575"),
    ("--min-p 5", "from 0 to 1"),
    ("--repetition-penalty 0", "above 0"),
    ("--repetition-penalty 2 --repetition-context-size 0", "at least 1"),
    ("--presence-penalty nan", "finite"),
    ("--presence-context-size -2", "at least 1"),
    ("--frequency-penalty inf", "finite"),
    ("--frequency-context-size -2", "at least 1"),
    ("--draft-kind mtp", "no effect without --draft-model"),
    ("--draft-block-size 4", "no effect without --draft-model"),
    ("--draft-model x/y --draft-block-size 0", "at least 1"),
    ("--processor-kwargs [1]", "a JSON object"),
    ('--processor-kwargs {"cropping":false}', "no argument 'cropping'"),
    ("--gen-kwargs 3", "a JSON object"),
    ('--gen-kwargs {"temperature":-1}', "temperature: it must be at least 0"),
    ('--gen-kwargs {"colour":1}', "no argument 'colour'"),
    ("--quantize-activations", "mode nvfp4 or mxfp8"),
    ("--revision v2", "a local directory, which has one version"),
    ("--image a.png --image b.png", "--image is given 2 times, of which only the last would count"),
    ("--image a.png --image=b.png", "--image b.png cannot be used: --image is given 2 times"),
    ("--prompt=a --prompt b", "--prompt is given 2 times"),
]
NOT_FOR_MOXIN = [
    ("--audio missing.wav", "--audio missing.wav cannot be used: Moxin hears nothing"),
    ("--video missing.mp4", "one still picture"),
    ("--fps 3", "one still picture"),
    ("--output answer.png", "answers in text"),
    ("--steps 3", "answers in text"),
    ("--max-denoising-steps 3", "no diffusion model"),
    ("--diffusion-sampler entropy-bound", "no diffusion model"),
    ("--enable-thinking", "--enable-thinking cannot be used: Moxin answers without thinking"),
    ("--thinking-budget 5", "without thinking"),
    ("--expert-cache-gb 3", "no experts"),
    # Before a model is loaded:
    ("--output-modality audio", "--output is required"),
    ("--output-modality audio --output x.wav", "answers in text"),
]
SERVING = [
    *[(case, part) for case, part in GENERATION if not case.startswith(("--temp", "--resize"))],
    ("--port 99999", "from 0 to 65535"),
    ("--vision-cache-size 0", "at least 1"),
    ("--log-progress-interval -1", "at least 0"),
    ("--max-num-seqs 0", "at least 1"),
    ("--top-logprobs-k 21", "from 0 to 20"),
    ("--draft-kind mtp", "no effect without --draft-model"),
    ("--kv-bits 4 --kv-quant-scheme turboquant --kv-key-scheme uniform", "one scheme for keys and"),
    ("--kv-bits 3.5 --kv-value-scheme uniform", "one scheme for keys and values, here turboquant"),
]
TRAINING = [
    ("--target-modules zzz", "no layer is called zzz; there are down_proj, gate_proj, k_proj"),
    ("--target-modules q_proj vision_tower", "no layer is called vision_tower"),
    ("--lora-rank 0", "at least 1"),
    ("--lora-rank 1000", "128 wide"),
    ("--lora-alpha 0", "above 0"),
    ("--lora-alpha nan", "finite"),
    ("--lora-dropout 1", "below 1"),
    ("--max-seq-length 3", "Truncating VLM row 0 at max_seq_length=3"),
    (f"{QUANTIZED} --quantization-bits 4", "quantised to 4 bits already"),
    ("--quantization-group-size 32", "no effect without --quantization-bits"),
    ("--quantization-bits 4 --full-finetune", "leave quantization_bits=None"),
    (f"{THREE_BITS} --train-type dora", "mlx-vlm has no DoRA for layers of 3 bits"),
    ("--full-finetune --lora-rank 4", "no effect on full training"),
    ("--full-finetune --target-modules q_proj", "no effect on full training"),
    ("--batch-size 5", "at least batch_size=5 examples"),
    ("--train-split other", "no non-empty 'other' split"),
    ("--data nowhere", "'nowhere'"),
    ("--resume-adapter-file nowhere", "nowhere"),
    ("--algorithm dpo", "chosen and rejected"),
    ("--algorithm grpo --reward-functions zzz", "mlx-vlm has no zzz"),
    ("--algorithm grpo --reward-weights [1,2]", "a JSON list of 1 numbers"),
    ("--algorithm grpo --reward-functions-file no.py", "no.py"),
    ("--algorithm dpo --reference-model ./no/such/model", "./no/such/model"),
]
CONVERTING = [
    ("-q --q-bits 7", "--q-bits 7 does not exist in MLX"),
    ("-q --q-bits 0", "--q-bits 0 does not exist in MLX"),
    ("-q --q-group-size 16", "--q-group-size 16 does not exist in MLX"),
    ("-q --q-mode mxfp4 --q-bits 8", "mode mxfp4 has 4"),
    ("--q-bits 4", "no effect without -q"),
    ("--quant-method awq", "no effect without -q"),
    ("--calibration multimodal", "no effect without --quant-method awq"),
    ("-q --calibration-data .", "--calibration-data needs"),
    ("-q --quant-predicate mixed_3_6 --q-bits 4", "no effect with --quant-predicate"),
    ("-q -d", "either --quantize or --dequantize"),
    ("-d", "--dequantize cannot be used: the checkpoint is not quantised"),
    (f"{QUANTIZED} -q --q-bits 8", "quantised to 4 bits already"),
    ("--mtp", "--mtp cannot be used"),
    ("--revision v2", "a local directory"),
]
CASES = [
    *[(GENERATE, *case) for case in (*GENERATION, *SAMPLING, *NOT_FOR_MOXIN)],
    *[(CHAT, *case) for case in (*GENERATION, NOT_FOR_MOXIN[7], NOT_FOR_MOXIN[8])],
    *[(SERVER, *case) for case in SERVING],
    *[(TRAIN, *case) for case in TRAINING],
    *[(CONVERT, *case) for case in CONVERTING],
]

# Options for which mlx-vlm already reports every wrong value in one line.
UNCHECKED = {
    # Texts and names: any value works, or the missing file or repository is named.
    *("prompt", "system", "model", "hf_path", "mlx_path", "adapter_path", "upload_repo", "image"),
    *("eos_tokens", "image_model", "tts_model", "stt_model", "embedding_model", "reranker_model"),
    *("decision_model", "model_dir", "api_key", "host", "config", "data", "dataset", "wandb"),
    *("hf_dataset_config", "train_split", "validation_split", "resume_adapter_file"),
    *("output_path", "adapter_file", "reference_model", "end_answer_token", "draft_model"),
    "reward_functions_file",
    # Switches, and options whose values argparse checks.
    *("help", "chat", "verbose", "skip_special_tokens", "force_download", "trust_remote_code"),
    *("reload", "log_level", "train_type", "train_vision", "optimizer", "algorithm", "compile"),
    *("grad_checkpoint", "train_on_completions", "kv_quant_scheme"),
    # Checked by mlx-vlm before it loads a model.
    *("seed", "min_pixels", "max_pixels", "learning_rate", "weight_decay", "dataset_config"),
    *("batch_size", "iters", "epochs", "gradient_accumulation_steps", "val_batches"),
    *("steps_per_report", "steps_per_eval", "steps_per_save", "clear_cache_threshold"),
    *("cache_size", "pad_to_multiple", "beta", "loss_type", "delta", "eps", "group_size"),
    *("epsilon", "epsilon_high", "advantage_epsilon", "max_completion_length"),
    *("grpo_loss_type", "importance_sampling_level", "logit_chunk_size"),
    # Checked by mlx-vlm on the data, or replaced by the tokenizer's values.
    *("max_seq_length", "assistant_id", "pad_token_id"),
}
# Options checked by a function of option_rules, training_rules or generation_settings.
CHECKED_BY_FUNCTIONS = {
    *("top_k", "resize_shape", "kv_bits", "kv_group_size", "processor_kwargs", "gen_kwargs"),
    *("revision", "quantize_activations", "quantize", "q_bits", "q_group_size", "q_mode"),
    *("quant_method", "calibration", "calibration_data", "dtype", "quant_predicate", "dequantize"),
    *("quantization_bits", "lora_dropout", "target_modules", "reward_functions"),
}


class _ParserError(Exception):
    """Carries the parser of a command out of its main function."""


def parsers(module: str) -> list[argparse.ArgumentParser]:
    """The parsers that a command's ``main`` makes."""
    if module == TRAIN:
        return [build_parser("vlm", name) for name in ("sft", "orpo", "dpo", "grpo")]

    def parse_args(parser, *args, **kwargs):
        raise _ParserError(parser)

    with mock.patch("argparse.ArgumentParser.parse_args", parse_args):
        try:
            importlib.import_module(module).main()
        except _ParserError as error:
            return [error.args[0]]
    raise AssertionError(f"{module} parses no arguments")


@pytest.mark.parametrize("module", [GENERATE, CHAT, SERVER, TRAIN, CONVERT])
def test_every_option_of_every_command_has_a_rule_or_needs_none(module):
    ruled = {
        *option_tables.RANGES,
        *generation_settings.RANGES,
        *option_tables.NEEDS,
        *(name for names in option_tables.NOT_FOR_MOXIN.values() for name in names),
        *CHECKED_BY_FUNCTIONS,
    }
    assert not ruled & UNCHECKED
    options = {action.dest for parser in parsers(module) for action in parser._actions}
    assert options <= ruled | UNCHECKED, options - ruled - UNCHECKED


def test_the_table_knows_what_a_command_has_where_an_option_is_not_given():
    for module in (GENERATE, CHAT, CONVERT):
        (parser,) = parsers(module)
        for names in option_tables.NOT_FOR_MOXIN.values():
            for name in names:
                assert not option_tables.is_given(name, parser.get_default(name)), name


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Directories by the placeholder at the start of a case's argument."""
    paths = {"": HF_CHECKPOINT}
    for name, bits in ((QUANTIZED, 4), (THREE_BITS, 3)):
        paths[name] = tmp_path_factory.mktemp("quantized") / "checkpoint"
        options = {"quantize": True, "q_bits": bits, "q_group_size": 32}
        convert(str(HF_CHECKPOINT), str(paths[name]), trust_remote_code=False, **options)
    return paths


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two rows of supervised training."""
    folder = tmp_path_factory.mktemp("rows")
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    row = json.dumps({"images": [image_path("photo")], "messages": turns})
    (folder / "train.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    return folder


def _serve(*args, **kwargs) -> None:
    """Replaces uvicorn: runs the application's start-up."""
    # mlx_vlm.server.app is the application, not the module.
    app = sys.modules["mlx_vlm.server.app"]
    app.get_cached_model(os.environ["MLX_VLM_PRELOAD_MODEL"], None, model_kind="text_generation")


@pytest.fixture
def error_of(monkeypatch, tmp_path, checkpoints, rows):
    """The last line of a command that is run in this process."""

    def run(module: str, case: str) -> str:
        kind = next(name for name in (QUANTIZED, THREE_BITS, "") if case.startswith(name))
        checkpoint, options = checkpoints[kind], case.removeprefix(kind).split()
        needed = {
            GENERATE: [] if "--image" in case else ["--image", image_path("photo")],
            TRAIN: ["--data", str(rows), "--iters", "1", "--output-path", str(tmp_path)],
            CONVERT: ["--mlx-path", str(tmp_path / "converted")],
        }.get(module, [])
        monkeypatch.setattr(sys, "argv", [module, "--model", str(checkpoint), *needed, *options])
        monkeypatch.setattr(cli.uvicorn, "run", _serve)
        # The server's main replaces it; later tests in this process need the original.
        monkeypatch.setattr(runtime, "config", runtime.config)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with mock.patch.dict(os.environ), pytest.raises((Exception, SystemExit)) as caught:
            importlib.import_module(module).main()
        if isinstance(caught.value, SystemExit):
            assert caught.value.code == 1
            return ""
        found = input_error(caught.value)
        assert found is not None, f"{caught.value!r} would be a traceback"
        return str(found)

    return run


@pytest.mark.parametrize(("module", "case", "part"), CASES)
def test_an_option_that_cannot_be_used_ends_in_one_line(error_of, capsys, module, case, part):
    # The chat catches every exception, prints it and exits with status 1.
    line = error_of(module, case) or " ".join(capsys.readouterr().out.split())
    assert part in line


def test_nothing_is_written_by_a_conversion_that_is_refused(error_of, tmp_path):
    error_of(CONVERT, "-q --q-bits 7")
    assert not (tmp_path / "converted").exists()


def test_weights_are_not_read_before_the_options_are_checked(error_of, monkeypatch):
    monkeypatch.setattr(nn.Module, "load_weights", None)
    assert "at least 0" in error_of(GENERATE, "--temperature -1")


def test_a_shape_that_leaves_no_pixel_of_a_narrow_picture_is_named(error_of, tmp_path):
    Image.new("RGB", (9, 300)).save(tmp_path / "narrow.png")
    case = f"--image {tmp_path / 'narrow.png'} --resize-shape 1 1"
    assert error_of(GENERATE, case) == "resize_shape 1 x 1 makes a picture of 0 x 1 pixels"


def test_an_adapter_with_trained_towers_is_not_resumed_without_them(error_of, tmp_path):
    names = ("vision_tower.a", "multi_modal_projector.b", "language_model.lora_a")
    mx.save_safetensors(str(tmp_path / "adapters"), {name: mx.zeros(1) for name in names})
    for path in (tmp_path, tmp_path / "adapters.safetensors"):
        line = error_of(TRAIN, f"--resume-adapter-file {path}")
        assert "holds 2 tensors of vision towers and projector, which would be lost" in line
        assert "add --train-vision" in line
        line = error_of(TRAIN, f"--resume-adapter-file {path} --train-vision")
        assert "adapter_config.json" in line
    (tmp_path / "adapters.safetensors").write_bytes(b"none")
    assert "cannot be read" in error_of(TRAIN, f"--resume-adapter-file {tmp_path}")


PROCESSES = [
    (("mlx_vlm", "generate", "--prompt", "Is it?", "--top-p", "5"), 1),
    (("mlx_vlm", "server", "--kv-bits", "7"), 3),
    (("mlx_vlm.train", "--data", "nowhere"), 1),
]


@pytest.mark.parametrize(("arguments", "status"), PROCESSES, ids=lambda value: str(value)[:30])
def test_the_process_ends_with_that_line_and_no_traceback(arguments, status):
    result = run_module(*arguments, "--model", HF_CHECKPOINT)
    assert result.returncode == status
    assert "Traceback" not in result.stdout + result.stderr
    assert "error: " in result.stderr


def test_a_copy_of_the_checkpoint_without_weights_is_named(tmp_path):
    path = shutil.copytree(HF_CHECKPOINT, tmp_path / "checkpoint")
    for file in path.glob("*.safetensors*"):
        file.unlink()
    result = run_module("mlx_vlm_moxin", "generate", "--model", path, "--prompt", "Is it?")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
