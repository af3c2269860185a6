"""Sizes of a comparison: Moxin-7B VLM's real sizes, or small ones that only test that it runs."""

from dataclasses import dataclass, replace

from mlx_vlm_moxin.bench import models as bench_models

SHAPES = ("moxin", "openvla")

SMALL_TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 576,
}
# timm's ratios of MLP and width: 4 for DINOv2, 3.7362 for SigLIP.
SMALL_VISION = {
    "image_size": 28,
    "dino": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 256,
        "num_register_tokens": 4,
        "class_token": True,
        "layer_scale": True,
    },
    "siglip": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 239},
}
SMALL_PROJECTOR = {"input_size": 128, "intermediate_size": 512, "output_size": 128}


def small_config():
    """Moxin's configuration in the sizes of the bundled checkpoint."""
    from mlx_vlm.models.moxin import ModelConfig

    return ModelConfig(
        text_config=SMALL_TEXT,
        vision_config=SMALL_VISION,
        projector_config=SMALL_PROJECTOR,
        pad_token_id=512,
    )


def published_config(shape: str):
    """Configuration of a published model: ``moxin`` or ``openvla``."""
    config = bench_models.real_config()
    if shape == "moxin":
        return config
    from mlx_vlm_moxin.library import models

    return models.config_of(models.PUBLISHED["openvla-7b"].model)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    Attributes:
        small: tiny random models instead of the real sizes.
        shape: whose real sizes, of ``SHAPES``.
        layers: of the decoder, instead of the model's number of them.
        context: tokens in the cache when decoding starts.
        long_context: the same where a long one is measured.
        prompt: tokens of a long prompt.
        short_prompt: tokens of one that is as long as a picture's with its question.
        chunk: tokens of it that are computed at a time.
        tokens: tokens decoded per round.
        few_tokens: the same for sides that need seconds for it.
        small_batch: rows that are decoded together where few are.
        batch: the same where many are.
        robots: actions that are computed in one pass.
        text_tokens: length of a question.
        picture: width and height of the picture that is asked about.
        photo: width and height of the JPEG whose preprocessing is measured.
    """

    small: bool = False
    shape: str = "moxin"
    layers: int | None = None
    context: int = 300
    long_context: int = 8000
    prompt: int = 2000
    short_prompt: int = 288
    chunk: int = 512
    tokens: int = 64
    few_tokens: int = 16
    small_batch: int = 8
    batch: int = 32
    robots: int = 8
    text_tokens: int = 32
    picture: tuple[int, int] = (640, 480)
    photo: tuple[int, int] = (4000, 3000)

    @property
    def config(self):
        """The model's configuration."""
        config = small_config() if self.small else published_config(self.shape)
        if self.layers is None:
            return config
        text = replace(config.text_config, num_hidden_layers=self.layers)
        return replace(config, text_config=text)


SMALL = Sizes(
    small=True,
    context=20,
    long_context=40,
    prompt=50,
    short_prompt=12,
    chunk=16,
    tokens=6,
    few_tokens=3,
    small_batch=2,
    batch=3,
    picture=(64, 48),
    photo=(400, 300),
)
