"""The model card says what the model is, wherever its source was."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from mlx_vlm import convert
from support import IMAGES, image_path

from mlx_vlm_moxin.checkpoints.card import write_card
from mlx_vlm_moxin.checkpoints.published import MOXIN_7B
from mlx_vlm_moxin.conversion.verify.compare import verify

BASE_MODEL = "moxin-org/Moxin-7B-VLM"
FOUR_BITS = {"group_size": 64, "bits": 4, "mode": "affine"}
DEFAULTS = {
    "source": BASE_MODEL,
    "base_model": BASE_MODEL,
    "config": MOXIN_7B,
    "quantization": FOUR_BITS,
    "verification": None,
    "upload_repo": None,
}


def card(directory, **changes) -> ModelCard:
    write_card(directory, **DEFAULTS | changes)
    return ModelCard.load(directory / "README.md")


def test_metadata_is_what_the_hub_filters_by(tmp_path):
    assert card(tmp_path).data.to_dict() == {
        "base_model": BASE_MODEL,
        "base_model_relation": "quantized",
        "library_name": "mlx",
        "license": "mit",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mlx", "moxin", "4-bit"],
    }


def test_a_model_that_is_not_quantised_is_not_called_so(tmp_path):
    written = card(tmp_path, quantization=None)
    assert written.data.tags == ["mlx", "moxin"]
    assert "base_model_relation" not in written.data.to_dict()
    assert "Not quantised." in written.text


def test_a_local_source_leaves_no_path_and_names_the_base_model(tmp_path):
    source = tmp_path / "private" / "run"
    source.mkdir(parents=True)
    written = card(tmp_path, source=str(source))
    assert "private" not in str(written)
    assert str(tmp_path) not in str(written)
    assert f"a local copy of [{BASE_MODEL}](https://huggingface.co/{BASE_MODEL})" in written.text


def test_a_relative_path_that_looks_like_a_hub_id_is_still_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private" / "run").mkdir(parents=True)
    assert "private/run" not in str(card(tmp_path, source="private/run"))


def test_a_hub_source_is_linked_beside_its_base_model(tmp_path):
    written = card(tmp_path, source="somebody/Moxin-7B-VLM-hf")
    link = "[somebody/Moxin-7B-VLM-hf](https://huggingface.co/somebody/Moxin-7B-VLM-hf)"
    assert f"Converted to MLX from {link}" in written.text
    assert written.data.base_model == BASE_MODEL


LLAMA = replace(MOXIN_7B, llm_backbone_id="vicuna-v15-7b")
STATISTICS = {"bridge_orig": {"action": {"q01": [0.0], "q99": [1.0]}}}


def test_a_model_with_llama_weights_names_its_licence_and_what_that_wants(tmp_path):
    source = "TRI-ML/prismatic-vlms/one-stage+7b"
    written = card(tmp_path, source=source, base_model=None, config=LLAMA)
    data = written.data.to_dict()
    assert (data["base_model"], data["license"]) == ("TRI-ML/prismatic-vlms", "llama2")
    assert data["tags"] == ["mlx", "prismatic", "4-bit"]
    link = f"[{source}](https://huggingface.co/TRI-ML/prismatic-vlms/tree/main/one-stage+7b)"
    assert f"Converted to MLX from {link}" in written.text
    assert "## Licence\n\nLlama 2 is licensed under the LLAMA 2 Community License" in written.text


def test_licences_are_those_of_the_language_models(tmp_path):
    mistral = replace(MOXIN_7B, llm_backbone_id="mistral-v0.1-7b-pure")
    written = card(tmp_path, base_model=None, config=mistral)
    assert written.data.license == "apache-2.0"
    assert "## Licence" not in written.text
    other = replace(MOXIN_7B, llm_backbone_id="llama3-8b-pure")
    written = card(tmp_path, base_model=None, config=other)
    assert written.data.license == "other"
    assert "licence of the language model llama3-8b-pure" in written.text


def test_an_action_model_is_run_as_one(tmp_path):
    config = replace(LLAMA, llm_backbone_id="llama2-7b-pure", norm_stats=STATISTICS)
    written = card(tmp_path, base_model=None, config=config, source=str(tmp_path))
    assert written.data.base_model == "openvla/openvla-7b"
    assert written.data.pipeline_tag == "robotics"
    assert "python -m mlx_vlm_moxin act --model . --instruction" in written.text
    assert "mlx_vlm.generate" not in written.text


def test_layers_with_other_settings_are_counted(tmp_path):
    quantization = {
        **FOUR_BITS,
        "language_model.lm_head": {"group_size": 64, "bits": 6, "mode": "affine"},
        "language_model.model.layers.0.mlp.down_proj": {
            "group_size": 64,
            "bits": 6,
            "mode": "affine",
        },
        "language_model.model.layers.1.mlp.down_proj": dict(FOUR_BITS),
        "vision_tower": False,
    }
    text = card(tmp_path, quantization=quantization).text
    assert "\n4 bits, group size 64, affine. 2 layers: 6 bits, group size 64, affine.\n" in text


def test_an_uploaded_model_is_run_by_its_hub_id(tmp_path):
    text = card(tmp_path, upload_repo="mlx-community/Moxin-7B-VLM-4bit").text
    assert "# mlx-community/Moxin-7B-VLM-4bit\n" in text
    assert "--model mlx-community/Moxin-7B-VLM-4bit " in text
    assert "pip install mlx-vlm-moxin\n" in text


@pytest.mark.parametrize("base_model", ["/home/me/run", "../run", "run"])
def test_a_base_model_that_is_no_hub_id_is_refused(tmp_path, base_model):
    with pytest.raises(ValueError, match="needs a Hub id as base_model"):
        write_card(tmp_path, **DEFAULTS | {"base_model": base_model})
    assert not (tmp_path / "README.md").exists()


def test_the_cards_command_runs_the_model_it_lies_beside(fp32_checkpoint, tmp_path):
    model = tmp_path / "model"
    convert(str(fp32_checkpoint), str(model), quantize=True, q_bits=8, q_group_size=32)
    quantization = json.loads((model / "config.json").read_text())["quantization"]
    verification = verify(fp32_checkpoint, model, IMAGES, quiet=True)
    text = card(model, quantization=quantization, verification=verification.markdown()).text
    assert verification.markdown() in text
    block = text.partition("```bash\n")[2].partition("```")[0].replace("\\\n", "")
    command = next(line for line in block.splitlines() if line.startswith("python "))
    words = shlex.split(command.replace("photo.jpg", image_path("photo")))
    result = subprocess.run(
        [sys.executable, *words[1:]], cwd=model, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
