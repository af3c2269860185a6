"""Facts about the published checkpoint that this package was written for."""

from mlx_vlm.models.moxin.config import ModelConfig, TextConfig

MOXIN_7B_ID = "moxin-org/Moxin-7B-VLM"
# config.json of the HF-converted checkpoint; all else are the defaults of the config classes.
MOXIN_7B = ModelConfig(text_config=TextConfig(num_hidden_layers=36, vocab_size=32064))
