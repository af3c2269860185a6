"""Every option of mlx-vlm's commands has a rule, is in a table, or needs no check."""

import argparse
import importlib
from unittest import mock

import pytest
from command_option_cases import CHAT, CONVERT, GENERATE, SERVER, TRAIN
from mlx_vlm.train import build_parser

from mlx_vlm_moxin.library import generation_settings
from mlx_vlm_moxin.plugin import option_tables

# Options for which mlx-vlm already reports every wrong value in one line.
UNCHECKED = {
    # Texts and names: any value works, or the missing file or repository is named.
    "prompt",
    "system",
    "model",
    "hf_path",
    "mlx_path",
    "adapter_path",
    "upload_repo",
    "image",
    "eos_tokens",
    "image_model",
    "tts_model",
    "stt_model",
    "embedding_model",
    "reranker_model",
    "decision_model",
    "model_dir",
    "api_key",
    "host",
    "config",
    "data",
    "dataset",
    "wandb",
    "hf_dataset_config",
    "train_split",
    "validation_split",
    "resume_adapter_file",
    "output_path",
    "adapter_file",
    "reference_model",
    "end_answer_token",
    "draft_model",
    "reward_functions_file",
    # Switches, and options whose values argparse checks.
    "help",
    "chat",
    "verbose",
    "skip_special_tokens",
    "force_download",
    "trust_remote_code",
    "reload",
    "log_level",
    "train_type",
    "train_vision",
    "optimizer",
    "algorithm",
    "compile",
    "grad_checkpoint",
    "train_on_completions",
    "kv_quant_scheme",
    # Checked by mlx-vlm before it loads a model.
    "seed",
    "min_pixels",
    "max_pixels",
    "learning_rate",
    "weight_decay",
    "dataset_config",
    "batch_size",
    "iters",
    "epochs",
    "gradient_accumulation_steps",
    "val_batches",
    "steps_per_report",
    "steps_per_eval",
    "steps_per_save",
    "clear_cache_threshold",
    "cache_size",
    "pad_to_multiple",
    "beta",
    "loss_type",
    "delta",
    "eps",
    "group_size",
    "epsilon",
    "epsilon_high",
    "advantage_epsilon",
    "max_completion_length",
    "grpo_loss_type",
    "importance_sampling_level",
    "logit_chunk_size",
    # Checked by mlx-vlm on the data, or replaced by the tokenizer's values.
    *["max_seq_length", "assistant_id", "pad_token_id"],
}
# Options checked by a function of option_rules, training_rules or generation_settings.
CHECKED_BY_FUNCTIONS = {
    "top_k",
    "resize_shape",
    "kv_bits",
    "kv_group_size",
    "processor_kwargs",
    "gen_kwargs",
    "revision",
    "quantize_activations",
    "quantize",
    "q_bits",
    "q_group_size",
    "q_mode",
    "quant_method",
    "calibration",
    "calibration_data",
    "dtype",
    "quant_predicate",
    "dequantize",
    "quantization_bits",
    "lora_dropout",
    "target_modules",
    "reward_functions",
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
