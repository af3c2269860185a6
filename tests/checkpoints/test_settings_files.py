"""A conversion has exactly the files that the model needs, and complete settings."""

import json

from mlx_vlm import load
from source_checkpoints import NATIVE_FILES, converted, copy_checkpoint, edit_json
from support import GOLDENS, HF_CHECKPOINT, image_path, run_module

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_a_conversion_holds_exactly_what_the_model_needs(tmp_path):
    source = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
    (source / "modeling_prismatic.py").write_text("raise SystemExit")
    (source / ".cache").mkdir()
    (source / "checkpoints").mkdir()
    (source / "notes.txt").write_text("mine")
    edit_json(source / "config.json", auto_map={"AutoConfig": "modeling_prismatic.X"})
    result = converted(source, tmp_path / "x")
    assert {path.name for path in result.iterdir()} == FILES
    assert not any(path.is_dir() or path.is_symlink() for path in result.iterdir())


def test_config_is_complete_and_has_nothing_else(tmp_path):
    config = json.loads((converted(HF_CHECKPOINT, tmp_path / "x") / "config.json").read_text())
    assert config["model_type"] == "moxin"
    assert (config["pad_token_id"], config["image_token_index"]) == (512, 513)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    text = config["text_config"]
    assert text["rms_norm_eps"] == 1e-6
    assert (text["rope_theta"], text["sliding_window"], text["head_dim"]) == (1e4, 4096, 16)
    assert (text["hidden_size"], text["vocab_size"]) == (128, 576)
    assert text["max_position_embeddings"] == 32768
    assert config["vision_config"]["image_size"] == 28
    assert config["vision_config"]["siglip"]["intermediate_size"] == 239
    assert config["vision_config"]["dino"]["num_register_tokens"] == 4
    assert config["projector_config"]["intermediate_size"] == 512
    unwanted = {"model_path", "timm_model_ids", "auto_map", "image_sizes", "quantization"}
    assert not config.keys() & unwanted


def test_a_decoder_without_a_window_keeps_none(tmp_path):
    source = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
    text = json.loads((source / "config.json").read_text())["text_config"]
    edit_json(source / "config.json", text_config={**text, "sliding_window": None})
    model, _ = load(str(converted(source, tmp_path / "x")))
    assert model.config.text_config.sliding_window is None


def test_both_spellings_of_the_rope_base_are_read(tmp_path):
    source = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
    text = json.loads((source / "config.json").read_text())["text_config"]
    rope = {"rope_type": "default", "rope_theta": 5e5}
    edit_json(source / "config.json", text_config={**text, "rope_parameters": rope})
    model, _ = load(str(converted(source, tmp_path / "x")))
    assert model.config.text_config.rope_theta == 5e5


def test_tokenizer_and_pixels_are_those_of_the_source(tmp_path):
    _, source = load(str(HF_CHECKPOINT), lazy=True)
    result = converted(HF_CHECKPOINT, tmp_path / "x")
    _, ours = load(str(result), lazy=True)
    for case in GOLDENS["tokenize"]:
        text = case["text"] if isinstance(case, dict) else case
        assert ours.tokenizer(text)["input_ids"] == source.tokenizer(text)["input_ids"]
    assert vars(ours.image_processor) == vars(source.image_processor)
    assert ours.chat_template == source.chat_template
    config = json.loads((result / "tokenizer_config.json").read_text())
    assert config["processor_class"] == "MoxinProcessor"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not any("local" in key for key in config)


def test_sampling_defaults_of_the_source_are_kept(tmp_path):
    source = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
    edit_json(source / "generation_config.json", temperature=0.2, do_sample=True)
    result = converted(source, tmp_path / "x")
    assert json.loads((result / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 512,
        "temperature": 0.2,
        "do_sample": True,
    }


def test_the_model_card_of_a_local_source_names_no_path(tmp_path):
    card = (converted(HF_CHECKPOINT, tmp_path / "x") / "README.md").read_text()
    assert "from a local directory with" in card
    assert "base_model" not in card
    assert "license" not in card
    assert str(tmp_path) not in card


def test_stock_mlx_vlm_runs_a_conversion(tmp_path):
    options = QuantizeOptions(quantize=True, q_bits=8)
    result = converted(NATIVE_FILES, tmp_path / "x", options)
    arguments = ["--model", result, "--image", image_path("photo"), "--max-tokens", 3]
    process = run_module("mlx_vlm.generate", *arguments, "--prompt", "What?")
    assert process.returncode == 0, process.stderr
