"""Native run directories: towers, tokenizer and settings are read from the right files."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.moxin.towers import DINO_ID, SIGLIP_ID, TIMM_MODELS
from source_checkpoints import HUB, NATIVE, NATIVE_FILES, copy_checkpoint, edit_json, load_weights
from support import ARRAYS, GOLDENS, HF_CHECKPOINT, image_path
from torch_files import tensor, write_pt

from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.checkpoints.sources.towers import read_tower
from mlx_vlm_moxin.conversion.source_files import SourceFiles


def copy_run(tmp_path, **run):
    directory = copy_checkpoint(NATIVE, tmp_path / "run")
    config = json.loads((directory / "config.json").read_text())["model"]
    edit_json(directory / "config.json", model={**config, **run})
    return directory


def open_run(directory, **files):
    files = {"dino": NATIVE_FILES.dino, "siglip": NATIVE_FILES.siglip, **files}
    return SourceFiles(str(directory), **{"llm": NATIVE_FILES.llm, **files}).open()


def test_the_config_is_the_language_models_with_the_added_token():
    source = NATIVE_FILES.open()
    text = source.config.text_config
    assert (text.rms_norm_eps, text.sliding_window, text.vocab_size) == (1e-5, 4096, 576)
    assert source.config.pad_token_id == 512
    tokenizer = source.processor.tokenizer
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<PAD>", 512)
    assert tokenizer.model_max_length == 2048


def test_prompts_are_tokenised_as_in_the_reference():
    processor = NATIVE_FILES.open().processor
    for prompt in GOLDENS["prompts"]:
        ids = processor(prompt["prompt"])["input_ids"][0]
        assert ids.tolist() == prompt["input_ids"]


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox"])
def test_pixels_equal_the_reference_to_the_last_bit(tmp_path, strategy):
    directory = copy_run(tmp_path, image_resize_strategy=strategy)
    processor = open_run(directory).processor.image_processor
    prefix = f"pixels_native/{strategy}/"
    names = [key.removeprefix(prefix) for key in ARRAYS if key.startswith(prefix)]
    assert names
    for name in names:
        pixels = processor(image_path(name))[0]
        np.testing.assert_array_equal(pixels, ARRAYS[prefix + name])


def test_towers_with_open_clip_names_are_read(tmp_path):
    timm = mx.load(str(HUB / "siglip.safetensors"))
    weights = {f"visual.trunk.{name}": value for name, value in timm.items()}
    weights |= {"text.positional_embedding": mx.zeros((4, 4)), "logit_scale": mx.array(1.0)}
    path = tmp_path / "open_clip_model.safetensors"
    mx.save_safetensors(str(path), weights)
    found = read_tower(str(tmp_path))
    assert found.keys() == timm.keys()
    assert all(mx.array_equal(found[name].load(), value) for name, value in timm.items())


def test_towers_in_pytorchs_format_are_read(tmp_path):
    timm = mx.load(str(HUB / "siglip.safetensors"))
    content = {n: tensor(np.array(v.astype(mx.float32))) for n, v in timm.items()}
    write_pt(tmp_path / "pytorch_model.bin", content)
    source = open_run(NATIVE, siglip=str(tmp_path))
    name = "vision_tower.siglip.blocks.0.attn.qkv.weight"
    expected = timm["blocks.0.attn.qkv.weight"]
    assert mx.array_equal(source.tensors[name].load(), expected)


def test_towers_in_the_checkpoint_win_over_given_ones(tmp_path):
    """For a fully fine-tuned run, the tower files given as options are not even opened."""
    directory = copy_run(tmp_path)
    hf = load_weights(HF_CHECKPOINT)
    content = read_pt(NATIVE / "checkpoints" / "latest-checkpoint.pt")["model"]
    content = {
        part: {name: tensor(np.array(value.load().view(mx.uint16))) for name, value in p.items()}
        for part, p in content.items()
    }
    prefixes = {"featurizer.": "dino_featurizer.", "fused_featurizer.": "siglip_featurizer."}
    content["vision_backbone"] = {
        theirs + name.removeprefix(f"vision_backbone.{ours}").replace("scale_factor", "gamma"): (
            tensor(np.array((value * 2).view(mx.uint16)))
        )
        for name, value in hf.items()
        for ours, theirs in prefixes.items()
        if name.startswith(f"vision_backbone.{ours}")
    }
    write_pt(directory / "checkpoints" / "latest-checkpoint.pt", {"model": content})
    source = open_run(directory, dino="/nowhere", siglip="/nowhere")
    ours = open_source(str(HF_CHECKPOINT)).tensors
    assert source.tensors.keys() == ours.keys()
    for name in ("dino.pos_embed", "dino.blocks.1.ls2.gamma", "siglip.patch_embed.proj.weight"):
        found = source.tensors[f"vision_tower.{name}"].load()
        assert mx.array_equal(found, 2 * ours[f"vision_tower.{name}"].load())


def test_exchanged_towers_are_refused():
    with pytest.raises(ValueError, match="given for --dino are not those of vit_large"):
        open_run(NATIVE, dino=NATIVE_FILES.siglip, siglip=NATIVE_FILES.dino)


def test_a_tower_for_pictures_of_another_size_is_refused(monkeypatch):
    vision = NATIVE_FILES.open().config.vision_config
    for timm_id in (DINO_ID, SIGLIP_ID):
        model = TIMM_MODELS[timm_id]
        config = vars(getattr(vision, model.name))
        monkeypatch.setitem(TIMM_MODELS, timm_id, replace(model, config=config))
    with pytest.raises(ValueError, match="pictures of 28 pixels; this model needs those for 224"):
        NATIVE_FILES.open()


def test_a_run_with_other_towers_is_refused(tmp_path):
    directory = copy_run(tmp_path, vision_backbone_id="clip-vit-b")
    with pytest.raises(ValueError, match=r"not supported: .*clip-vit-b.* Supported: .*224px"):
        open_run(directory)


def test_phi_is_refused_in_one_sentence(tmp_path):
    directory = copy_run(tmp_path, llm_backbone_id="phi-2-3b")
    with pytest.raises(ValueError, match=r"has llm_backbone_id 'phi-2-3b'\. Supported: .*-pure"):
        open_run(directory)


def test_settings_are_never_guessed(tmp_path):
    directory = copy_run(tmp_path, image_resize_strategy=None, arch_specifier=3)
    with pytest.raises(ValueError, match=r"has no image_resize_strategy, arch_specifier$"):
        open_run(directory)


def test_an_action_run_on_an_unknown_model_or_without_statistics_is_refused(tmp_path):
    directory = copy_checkpoint(NATIVE, tmp_path / "run")
    run = {"vla": {"base_vlm": "runs/my-own-vlm"}}
    (directory / "config.json").write_text(json.dumps(run))
    with pytest.raises(FileNotFoundError, match=r"has no dataset_statistics\.json"):
        open_run(directory)
    (directory / "dataset_statistics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset_statistics\.json is empty"):
        open_run(directory)
    (directory / "dataset_statistics.json").write_text('{"robot": {}}')
    with pytest.raises(ValueError, match="'runs/my-own-vlm', which is not a published Prismatic"):
        open_run(directory)


def test_an_action_run_has_the_settings_of_its_base_and_its_own_statistics(tmp_path):
    directory = copy_checkpoint(NATIVE, tmp_path / "run")
    run = {"vla": {"base_vlm": "somewhere/prism-moxin-dinosiglip-224px+7b"}}
    (directory / "config.json").write_text(json.dumps(run))
    statistics = {"bridge_orig": {"action": {"q01": [0.0], "q99": [1.0]}}}
    (directory / "dataset_statistics.json").write_text(json.dumps(statistics))
    config = open_run(directory).config
    assert config.norm_stats == statistics
    assert (config.n_action_bins, config.pad_to_multiple_of) == (256, 64)
    assert config.llm_backbone_id == "moxin-7b-pure"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "is not a Prismatic checkpoint: .* found list"),
        ({"state_dict": {}}, r"expected 'model' with .* found \['state_dict'\]"),
        ({"model": {"projector": {}, "llm_backbone": 3}}, "llm_backbone is not a state dict"),
        ({"model": {"projector": {"a": 1}, "llm_backbone": {}}}, "'a', which is not a tensor"),
        ({"model": {"projector": {}, "llm_backbone": {}}}, "no fused-gelu-mlp projector"),
    ],
)
def test_checkpoints_with_other_content_are_refused(tmp_path, content, message):
    directory = copy_run(tmp_path)
    write_pt(directory / "checkpoints" / "latest-checkpoint.pt", content)
    with pytest.raises(ValueError, match=message):
        open_run(directory)


def test_missing_files_are_named(tmp_path):
    directory = copy_run(tmp_path)
    (directory / "checkpoints" / "latest-checkpoint.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/latest-checkpoint\.pt"):
        open_run(directory)
    with pytest.raises(FileNotFoundError, match=r"has none of the files model\.safetensors"):
        open_run(NATIVE, dino=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"No tokenizer\.json and no .*--llm"):
        open_run(NATIVE, llm=str(tmp_path))


def test_a_tower_file_with_other_content_is_refused():
    with pytest.raises(ValueError, match="does not contain a timm vision transformer"):
        open_run(NATIVE, dino=str(HF_CHECKPOINT / "model-00001-of-00003.safetensors"))


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path):
    llm = copy_checkpoint(HUB / "llm", tmp_path / "llm", skip=("special_tokens_map.json",))
    edit_json(llm / "tokenizer_config.json", bos_token=None, eos_token=None)
    with pytest.raises(ValueError, match="has no bos_token or no eos_token"):
        open_run(NATIVE, llm=str(llm))
