"""The published models of the Prismatic family, by their ids in training configurations.

Reference: ``prismatic/conf/models.py`` of github TRI-ML/prismatic-vlms. A checkpoint's
config.json has the same settings and takes precedence: for two ids it differs from this
table. The table supplies what no config.json contains: the list of models, and the base model
of an OpenVLA run.
"""

from dataclasses import dataclass, replace

PRISMATIC_REPOSITORY = "TRI-ML/prismatic-vlms"


@dataclass(frozen=True)
class PrismaticModel:
    """Settings of a training run, with the names from its config.json."""

    vision_backbone_id: str = "clip-vit-l-336px"
    image_resize_strategy: str = "letterbox"
    llm_backbone_id: str = "vicuna-v15-7b"
    arch_specifier: str = "no-align+gelu-mlp"


_DEFAULT = PrismaticModel()
_FUSED = replace(_DEFAULT, arch_specifier="no-align+fused-gelu-mlp")
_PRISM = replace(_DEFAULT, image_resize_strategy="resize-naive", llm_backbone_id="llama2-7b-pure")
_PRISM_FUSED = replace(_PRISM, arch_specifier="no-align+fused-gelu-mlp")


def _resized(model: PrismaticModel, strategy: str) -> PrismaticModel:
    return replace(model, image_resize_strategy=strategy)


def _seen(vision_backbone_id: str, model: PrismaticModel = _DEFAULT) -> PrismaticModel:
    return replace(model, vision_backbone_id=vision_backbone_id)


def _told(llm_backbone_id: str, model: PrismaticModel = _DEFAULT) -> PrismaticModel:
    return replace(model, llm_backbone_id=llm_backbone_id)


_SIGLIP_384 = _seen("siglip-vit-so400m-384px")
_DINOCLIP = _seen("dinoclip-vit-l-336px", _FUSED)
_DINOSIGLIP_384 = _seen("dinosiglip-vit-so-384px", _FUSED)
_PRISM_SIGLIP = _seen("siglip-vit-so400m-384px", _PRISM)
_PRISM_DINOSIGLIP = _seen("dinosiglip-vit-so-384px", _PRISM_FUSED)
_PRISM_DINOSIGLIP_224 = _seen("dinosiglip-vit-so-224px", _PRISM_FUSED)

PRISMATIC_MODELS = {
    "reproduction-llava-v15+7b": replace(_DEFAULT, arch_specifier="gelu-mlp"),
    "reproduction-llava-v15+13b": replace(
        _DEFAULT, arch_specifier="gelu-mlp", llm_backbone_id="vicuna-v15-13b"
    ),
    "one-stage+7b": _DEFAULT,
    "one-stage+13b": _told("vicuna-v15-13b"),
    "full-ft-multi-stage+7b": replace(_DEFAULT, arch_specifier="gelu-mlp"),
    "full-ft-one-stage+7b": _DEFAULT,
    "in1k-224px+7b": _seen("in1k-vit-l"),
    "dinov2-224px+7b": _seen("dinov2-vit-l"),
    "clip-224px+7b": _seen("clip-vit-l"),
    "siglip-224px+7b": _seen("siglip-vit-so400m"),
    "clip-336px-resize-crop+7b": _resized(_DEFAULT, "resize-crop"),
    "clip-336px-resize-naive+7b": _resized(_DEFAULT, "resize-naive"),
    "siglip-384px-letterbox+7b": _SIGLIP_384,
    "siglip-384px-resize-crop+7b": _resized(_SIGLIP_384, "resize-crop"),
    "siglip-384px-resize-naive+7b": _resized(_SIGLIP_384, "resize-naive"),
    "dinoclip-336px-letterbox+7b": _DINOCLIP,
    "dinoclip-336px-resize-naive+7b": _resized(_DINOCLIP, "resize-naive"),
    "dinosiglip-384px-letterbox+7b": _DINOSIGLIP_384,
    "dinosiglip-384px-resize-naive+7b": _resized(_DINOSIGLIP_384, "resize-naive"),
    "llama2+7b": _told("llama2-7b-pure"),
    "llama2+13b": _told("llama2-13b-pure"),
    "llama2-chat+7b": _told("llama2-7b-chat"),
    "llama2-chat+13b": _told("llama2-13b-chat"),
    "mistral-v0.1+7b": _told("mistral-v0.1-7b-pure"),
    "mistral-instruct-v0.1+7b": _told("mistral-v0.1-7b-instruct"),
    "phi-2+3b": _told("phi-2-3b"),
    "vicuna-no-cotraining+7b": _DEFAULT,
    "llama2-no-cotraining+7b": _told("llama2-7b-pure"),
    "train-1.25-epochs+7b": _DEFAULT,
    "train-1.5-epochs+7b": _DEFAULT,
    "train-2-epochs+7b": _DEFAULT,
    "train-3-epochs+7b": _DEFAULT,
    "llava-lvis4v+7b": _DEFAULT,
    "llava-lrv+7b": _DEFAULT,
    "llava-lvis4v-lrv+7b": _DEFAULT,
    "prism-clip-controlled+7b": _PRISM,
    "prism-clip-controlled+13b": _told("llama2-13b-pure", _PRISM),
    "prism-clip+7b": _PRISM,
    "prism-clip+13b": _told("llama2-13b-pure", _PRISM),
    "prism-siglip-controlled+7b": _PRISM_SIGLIP,
    "prism-siglip-controlled+13b": _told("llama2-13b-pure", _PRISM_SIGLIP),
    "prism-siglip+7b": _PRISM_SIGLIP,
    "prism-siglip+13b": _told("llama2-13b-pure", _PRISM_SIGLIP),
    "prism-dinosiglip-controlled+7b": _PRISM_DINOSIGLIP,
    "prism-dinosiglip-controlled+13b": _told("llama2-13b-pure", _PRISM_DINOSIGLIP),
    "prism-dinosiglip+7b": _PRISM_DINOSIGLIP,
    "prism-dinosiglip+13b": _told("llama2-13b-pure", _PRISM_DINOSIGLIP),
    "prism-dinosiglip-224px-controlled+7b": _PRISM_DINOSIGLIP_224,
    "prism-dinosiglip-224px+7b": _PRISM_DINOSIGLIP_224,
    "prism-moxin-dinosiglip-224px+7b": _told("moxin-7b-pure", _PRISM_DINOSIGLIP_224),
}
