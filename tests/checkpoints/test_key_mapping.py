"""Each source name has exactly one name here, none is lost, and each rule is reversible."""

import re

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_vlm.models.moxin.towers import TOWER_NAMES
from mlx_vlm.models.moxin.weights import is_unused, moxin_name
from source_checkpoints import HUB, NATIVE, NATIVE_FILES, write_ominix
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.checkpoints.sources.native import PREFIXES, native_name
from mlx_vlm_moxin.checkpoints.sources.ominix import hf_name as from_ominix
from mlx_vlm_moxin.checkpoints.sources.ominix import join_attention
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor, read_checkpoint, read_safetensors

TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
number = st.integers(0, 99).map(str)
wb = st.sampled_from(["weight", "bias"])


def join(*parts):
    return st.tuples(*[st.just(p) if isinstance(p, str) else p for p in parts]).map("".join)


BLOCK = st.sampled_from(["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
SCALE = join("blocks.", number, ".", st.sampled_from(["ls1", "ls2"]), ".scale_factor")
TOWER = st.one_of(
    join("blocks.", number, ".", BLOCK, ".", wb),
    SCALE,
    st.sampled_from(["pos_embed", "cls_token", "reg_token", "norm.weight", "norm.bias"]),
    join("patch_embed.proj.", wb),
    join("attn_pool.", st.sampled_from(["latent", "q.weight", "kv.bias", "mlp.fc1.weight"])),
)
DECODER = st.one_of(
    st.sampled_from(["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]),
    join(
        "model.layers.",
        number,
        ".",
        st.sampled_from(["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"]),
        ".weight",
    ),
    join("model.layers.", number, ".input_layernorm.weight"),
)
PROJECTOR = join("projector.", st.sampled_from(["fc1", "fc2", "fc3"]), ".", wb)
HF = st.one_of(join(st.sampled_from(TOWERS), TOWER), PROJECTOR, join("language_model.", DECODER))
names = st.lists(HF, unique=True, max_size=40)


def undo_hf(name: str) -> str:
    """HF-converted name of one of ours."""
    name = re.sub(r"\.(ls[12])\.gamma$", r".\1.scale_factor", name)
    for ours, theirs in (
        ("vision_tower.dino.", TOWERS[0]),
        ("vision_tower.siglip.", TOWERS[1]),
        ("multi_modal_projector.", "projector."),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def to_native(name: str) -> tuple[str, str]:
    """Part and name in a native checkpoint of one of our names."""
    for part, rules in PREFIXES.items():
        for theirs, ours in rules.items():
            if name.startswith(ours):
                return part, theirs + name[len(ours) :]
    raise AssertionError(name)


def to_ominix(name: str) -> list[str]:
    """OminiX's names of an HF-converted name."""
    if name.startswith("vision_backbone."):
        name = name.replace(".attn.proj.", ".attn.out_proj.")
        if ".attn.qkv." in name:
            return [name.replace("qkv", f"{part}_proj") for part in "qkv"]
    elif name.endswith(("_proj.weight", "lm_head.weight")):
        path = name.removesuffix(".weight")
        return [f"{path}.inner.weight", f"{path}.scales", f"{path}.biases"]
    return [name]


@given(names)
def test_hf_names_can_be_undone(hf_names):
    ours = [moxin_name(name, TOWER_NAMES) for name in hf_names]
    assert [undo_hf(name) for name in ours] == hf_names
    assert [moxin_name(name, TOWER_NAMES) for name in ours] == ours


@given(names)
def test_native_names_can_be_undone(hf_names):
    ours = [moxin_name(name, TOWER_NAMES) for name in hf_names]
    native = [to_native(name) for name in ours]
    assert len(set(native)) == len(ours)
    assert [native_name(*name, TOWER_NAMES[:2]) for name in native] == ours


def test_the_names_of_a_single_native_tower_have_no_prefix():
    name = "blocks.3.norm1.weight"
    ours = native_name("vision_backbone", f"featurizer.{name}", ["clip"])
    assert ours == f"vision_tower.clip.{name}"
    with pytest.raises(ValueError, match=r"unknown tensor clip_featurizer\.blocks"):
        native_name("vision_backbone", f"clip_featurizer.{name}", ["clip"])


def test_the_one_layer_of_a_linear_projector_has_no_number():
    ours = native_name("projector", "projector.weight", ["clip"])
    assert ours == "multi_modal_projector.fc1.weight"


@given(names)
def test_ominix_names_can_be_undone(hf_names):
    source = {other: name for name in hf_names for other in to_ominix(name)}
    joined = join_attention({name: LazyTensor.of(mx.zeros((2, 2))) for name in source})
    parts = [
        name.removesuffix("weight") + part
        for name in hf_names
        for part in (["weight", "scales", "biases"] if len(to_ominix(name)) == 3 else [None])
        if part is not None and ".attn.qkv." not in name
    ]
    whole = [n for n in hf_names if len(to_ominix(n)) == 1 or ".attn.qkv." in n]
    assert sorted(joined) == sorted([*whole, *parts])
    for name in source:
        other, place = from_ominix(name)
        assert other in joined
        assert (place is None) == (".attn.qkv." not in other)


@pytest.mark.parametrize("part", list(PREFIXES))
def test_an_unknown_native_tensor_is_named(part):
    with pytest.raises(ValueError, match=f"The checkpoint's {part} has an unknown tensor extra"):
        native_name(part, "extra.weight", TOWER_NAMES[:2])


def _parameters(source) -> set[str]:
    return {re.sub(r"\.(scales|biases)$", ".weight", name) for name in source.tensors}


def test_all_sources_give_the_same_parameters(tmp_path):
    hf = open_source(str(HF_CHECKPOINT))
    ominix = open_source(str(write_ominix(tmp_path / "ominix")))
    native = NATIVE_FILES.open()
    assert _parameters(hf) == _parameters(ominix) == _parameters(native)
    shapes = {name: tensor.shape for name, tensor in hf.tensors.items()}
    assert {name: tensor.shape for name, tensor in native.tensors.items()} == shapes


def test_only_layers_after_the_features_are_dropped():
    native = NATIVE_FILES.open()
    parts = read_pt(NATIVE / "checkpoints" / "latest-checkpoint.pt")["model"]
    towers = ("dino", "siglip")
    files = [native_name(part, name, towers) for part, names in parts.items() for name in names]
    for tower in towers:
        tensors = read_safetensors(HUB / f"{tower}.safetensors")
        files += [f"vision_tower.{tower}.{name}" for name in tensors]
    for all_names, source in (
        (files, native),
        (list(read_checkpoint(HF_CHECKPOINT)), open_source(str(HF_CHECKPOINT))),
    ):
        ours = [moxin_name(name, TOWER_NAMES) for name in all_names]
        used = [name for name in ours if not is_unused(name, source.config.vision_config)]
        assert len(set(ours)) == len(ours)
        assert sorted(used) == sorted(source.tensors)
