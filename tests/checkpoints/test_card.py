"""The model card says what is known about the model and how to run it, for any kind of source."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from mlx_vlm import convert
from mlx_vlm.models.moxin.action_config import ActionConfig
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.text_config import TextConfig
from mlx_vlm.models.moxin.towers import SIGLIP_ID, TIMM_MODELS
from mlx_vlm.models.moxin.vision_config import VisionConfig
from support import HF_CHECKPOINT, IMAGES, image_path, run_module

from mlx_vlm_moxin.checkpoints import published
from mlx_vlm_moxin.checkpoints.card import Card, name_repository
from mlx_vlm_moxin.checkpoints.provenance import Provenance
from mlx_vlm_moxin.checkpoints.published import MOXIN_7B, MOXIN_7B_ID
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.conversion.verify.compare import verify

FOUR_BITS = {"group_size": 64, "bits": 4, "mode": "affine"}
KNOWN = Provenance(source=MOXIN_7B_ID, base_model=MOXIN_7B_ID, license="mit")
CARD = Card(KNOWN, MOXIN_7B, FOUR_BITS)
LOCAL = Card(Provenance(), MOXIN_7B, FOUR_BITS)


def written(directory, card: Card = CARD, **changes) -> ModelCard:
    upload_repo = changes.pop("upload_repo", None)
    replace(card, **changes).write(directory, upload_repo)
    return ModelCard.load(directory / "README.md")


def test_metadata_is_what_the_hub_filters_by(tmp_path):
    assert written(tmp_path).data.to_dict() == {
        "base_model": MOXIN_7B_ID,
        "base_model_relation": "quantized",
        "library_name": "mlx",
        "license": "mit",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mlx", "moxin", "4-bit"],
    }


def test_what_is_not_known_is_left_out(tmp_path):
    card = written(tmp_path, LOCAL)
    assert card.data.to_dict() == {
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mlx", "prismatic", "4-bit"],
    }
    assert "Converted to MLX from a local directory with mlx-vlm-moxin" in card.text
    assert "Moxin-7B-VLM" not in str(card)


def test_a_model_that_is_not_quantised_is_not_called_so(tmp_path):
    card = written(tmp_path, quantization=None)
    assert card.data.tags == ["mlx", "moxin"]
    assert "base_model_relation" not in card.data.to_dict()
    assert "Not quantised." in card.text


def test_a_fine_tune_stays_one_when_it_is_quantised(tmp_path):
    known = Provenance(base_model="a/b", relation="finetune")
    card = written(tmp_path, LOCAL, provenance=known)
    assert card.data.base_model_relation == "finetune"
    assert "It is a fine-tune of [a/b](https://huggingface.co/a/b)." in card.text


def test_a_hub_source_is_linked_in_addition_to_its_base_model(tmp_path):
    known = replace(KNOWN, source="somebody/Moxin-7B-VLM-hf")
    card = written(tmp_path, provenance=known)
    link = "[somebody/Moxin-7B-VLM-hf](https://huggingface.co/somebody/Moxin-7B-VLM-hf)"
    assert f"Converted to MLX from {link}" in card.text
    assert card.data.base_model == MOXIN_7B_ID


def test_a_model_in_a_folder_of_a_repository_links_to_the_repository(tmp_path):
    known = Provenance("TRI-ML/prismatic-vlms/llama2+7b", "TRI-ML/prismatic-vlms")
    card = written(tmp_path, LOCAL, provenance=known)
    address = "https://huggingface.co/TRI-ML/prismatic-vlms/tree/main/llama2+7b"
    assert f"Converted to MLX from [TRI-ML/prismatic-vlms/llama2+7b]({address})" in card.text
    assert "Its base model" not in card.text


def test_the_model_is_described_by_its_config(tmp_path):
    assert (
        "A vision-language model of the Prismatic family: DINOv2 and SigLIP at 224 pixels, and a "
        "Mistral decoder of 36 layers, 4096 wide."
    ) in written(tmp_path).text
    siglip = VisionConfig(image_size=384, siglip=TIMM_MODELS[SIGLIP_ID].tower_config())
    llama = TextConfig.from_dict({"model_type": "llama", "vocab_size": 32064})
    config = ModelConfig(vision_config=siglip, text_config=llama, norm_stats={"a": {}})
    card = written(tmp_path, LOCAL, config=config)
    assert (
        "A vision-language-action model of the Prismatic family: SigLIP at 384 pixels, and a "
        "Llama decoder of 32 layers, 4096 wide."
    ) in card.text
    assert card.data.pipeline_tag == "robotics"
    assert card.data.tags == ["mlx", "openvla", "4-bit"]
    assert "mlx_vlm generate" not in card.text
    assert "python -m mlx_vlm_moxin act --model . --image photo.jpg" in card.text


def test_the_command_of_an_action_model_has_what_the_model_needs(tmp_path):
    actions = ActionConfig(decoding="parallel", chunk_size=8, num_images=2, proprio_dim=3)
    config = replace(MOXIN_7B, norm_stats={"b": {}, "a c": {}}, action_config=actions)
    assert (
        "python -m mlx_vlm_moxin act --model . --image photo.jpg --image camera2.jpg \\\n"
        '    --instruction "pick up the red cup" --state "0,0,0" --unnorm-key \'a c\'\n'
    ) in written(tmp_path, config=config).text


def test_what_the_language_models_licence_wants_is_said(tmp_path):
    llama = replace(MOXIN_7B, llm_backbone_id="vicuna-v15-7b")
    card = written(tmp_path, LOCAL, config=llama)
    assert "## Licence\n\nLlama 2 is licensed under the LLAMA 2 Community License" in card.text
    mistral = replace(MOXIN_7B, llm_backbone_id="mistral-v0.1-7b-pure")
    assert "## Licence" not in written(tmp_path, config=mistral).text
    other = replace(MOXIN_7B, llm_backbone_id="llama3-8b-pure")
    assert "licence of the language model llama3-8b-pure" in written(tmp_path, config=other).text


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
    text = written(tmp_path, quantization=quantization, notes=("A note.",)).text
    sentence = "4 bits, group size 64, affine. 2 layers: 6 bits, group size 64, affine. A note."
    assert f"\n{sentence}\n" in text


def test_benchmarks_are_a_part_only_if_they_were_measured(tmp_path):
    assert "Benchmarks" not in written(tmp_path).text
    assert "\n## Benchmarks\n\nFine.\n" in written(tmp_path, evaluation="Fine.").text


class TestInstallation:
    """The package is on no index, where its name could be registered by somebody else."""

    def test_the_card_says_what_a_reader_with_mlx_vlm_alone_needs(self, tmp_path):
        text = written(tmp_path).text
        assert "Without it, mlx-vlm says\n`Model type moxin not supported`" in text
        assert 'pip install "./mlx-vlm-moxin[cpu]"' in text

    def test_every_install_line_names_a_local_folder(self, tmp_path):
        lines = [line for line in written(tmp_path).text.splitlines() if "pip install" in line]
        assert len(lines) == 3
        assert all(shlex.split(line)[2].startswith("./") for line in lines)

    def test_an_address_is_named_once_there_is_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(published, "project_url", lambda: None)
        assert "a clone of its repository" in written(tmp_path).text
        monkeypatch.setattr(published, "project_url", lambda: "https://example.org/x")
        assert "a clone of <https://example.org/x>" in written(tmp_path).text


class TestRepository:
    def test_an_uploaded_model_is_run_by_its_hub_id(self, tmp_path):
        text = written(tmp_path, upload_repo="mlx-community/Moxin-7B-VLM-4bit").text
        assert text.startswith("\n# mlx-community/Moxin-7B-VLM-4bit\n")
        assert "--model mlx-community/Moxin-7B-VLM-4bit --max-tokens" in text

    def test_a_card_that_is_named_later_is_the_same(self, tmp_path):
        (tmp_path / "a").mkdir()
        written(tmp_path / "a", upload_repo="a/b")
        written(tmp_path)
        name_repository(tmp_path, "first/name")
        name_repository(tmp_path, "a/b")
        assert (tmp_path / "README.md").read_text() == (tmp_path / "a/README.md").read_text()

    @pytest.mark.parametrize("text", ["# My model\n\nIt is mine.\n", ""])
    def test_a_card_of_the_users_own_stays(self, tmp_path, text):
        (tmp_path / "README.md").write_text(text)
        name_repository(tmp_path, "a/b")
        assert (tmp_path / "README.md").read_text() == text

    def test_no_card_stays_no_card(self, tmp_path):
        name_repository(tmp_path, "a/b")
        assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_cards_command_runs_the_model_in_the_same_folder(fp32_checkpoint, tmp_path):
    model = tmp_path / "model"
    convert(str(fp32_checkpoint), str(model), quantize=True, q_bits=8, q_group_size=32)
    quantization = json.loads((model / "config.json").read_text())["quantization"]
    (tmp_path / "pictures").mkdir()
    shutil.copy(IMAGES / "photo.png", tmp_path / "pictures")
    verification = verify(fp32_checkpoint, model, tmp_path / "pictures", quiet=True)
    config = open_source(str(HF_CHECKPOINT)).config
    card = Card(Provenance(), config, quantization, verification=verification.markdown())
    text = written(model, card).text
    assert verification.markdown() in text
    blocks = [part.partition("```")[0] for part in text.split("```bash\n")[1:]]
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    command = next(line for line in lines if line.startswith("python "))
    words = shlex.split(command.replace("photo.jpg", image_path("photo")))
    assert words[:2] == ["python", "-m"]
    result = run_module(*words[2:], cwd=model)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
