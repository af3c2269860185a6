"""Settings of a vision-language-action model that do not follow from its weights."""

from dataclasses import dataclass, field

from ..base import BaseModelConfig
from .validation import CONFIG_FILE, check_setting, check_settings

DECODINGS = ("autoregressive", "parallel")
HEADS = ("l1",)
NORMALIZATIONS = ("bounds_q99", "bounds")
# Llama 2's id of a single space, which OpenVLA's training text had after "Out:".
SPACE_TOKEN_ID = 29871


@dataclass
class ActionConfig(BaseModelConfig):
    """Settings of an action model. The defaults are OpenVLA's.

    Attributes:
        decoding: ``"autoregressive"``, one token for each dimension (OpenVLA), or
            ``"parallel"``, a chunk of actions in one pass (OpenVLA-OFT).
        chunk_size: actions in a chunk; 1 if autoregressive.
        num_images: camera pictures for an action, the main one first.
        normalization: statistics that are mapped to -1 and 1: 1st and 99th percentiles
            (``"bounds_q99"``) or extremes (``"bounds"``).
        causal: whether parallel decoding keeps the causal mask; OpenVLA-OFT attends in both
            directions, Moxin-VLA runs causal.
        drop_image_marker: whether ``<image>`` in an instruction is dropped, as native training
            runs do; the published HF code keeps it.
        append_token_id: appended to the prompt unless it is already its last id; None for none.
        center_crop: whether pictures are cropped to 0.9 of their area, for models trained on
            randomly cropped ones.
        policy_resize: whether pictures of other sizes than 224 x 224 are first compressed as JPEG
            and resized with Lanczos, as in OpenVLA-OFT's evaluation.
        head: ``"l1"`` for the regression head, None for action tokens.
        head_hidden_size: width of the head.
        action_dim: values of an action from the head.
        proprio_dim: values of the robot's state; None if the model does not read it.
    """

    decoding: str = field(default="autoregressive", metadata={"choices": DECODINGS})
    chunk_size: int = 1
    num_images: int = 1
    normalization: str = field(default="bounds_q99", metadata={"choices": NORMALIZATIONS})
    causal: bool = True
    drop_image_marker: bool = False
    append_token_id: int | None = field(default=SPACE_TOKEN_ID, metadata={"low": 0})
    center_crop: bool = False
    policy_resize: bool = False
    head: str | None = field(default=None, metadata={"choices": HEADS})
    head_hidden_size: int | None = None
    action_dim: int | None = None
    proprio_dim: int | None = None

    def __post_init__(self):
        check_settings(ActionConfig, vars(self), "action_config")
        if self.head:
            check_setting(CONFIG_FILE, "action_config.action_dim", self.action_dim, int)
            check_setting(CONFIG_FILE, "action_config.head_hidden_size", self.head_hidden_size, int)
        if self.decoding == "autoregressive" and (
            self.head or self.proprio_dim or self.chunk_size > 1 or self.num_images > 1
        ):
            raise ValueError(
                "config.json: action_config has a head, a state, chunks or several pictures, which "
                "need decoding 'parallel'"
            )
