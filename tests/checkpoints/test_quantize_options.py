"""Which quantisation settings are accepted, and the messages for the others."""

import pytest
from mlx_vlm.convert import configure_parser as upstream_parser
from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion.command_line import configure_parser

# Moxin has no native multi-token prediction, and no code of a repository is ever run.
NOT_OFFERED = {"--mtp", "--mtp-output", "--trust-remote-code"}


def _options(parser) -> set[str]:
    return set(parser._option_string_actions)


def test_every_option_of_mlx_vlm_convert_has_its_name_here():
    assert _options(upstream_parser()) - _options(configure_parser()) == NOT_OFFERED


@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_settings_that_mlx_supports_are_accepted(group_size, bits):
    QuantizeOptions(quantize=True, q_group_size=group_size, q_bits=bits).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"q_group_size": 256}, "--q-group-size 256 does not exist in MLX; .* 32, 64, 128"),
        ({"q_group_size": 16}, "affine has 32, 64, 128"),
        ({"q_bits": 7}, "--q-bits 7 does not exist in MLX; .* 2, 3, 4, 5, 6, 8"),
        ({"q_mode": "mxfp4", "q_group_size": 64}, "mode mxfp4 has 32"),
        ({"q_mode": "nvfp4", "q_group_size": 32}, "mode nvfp4 has 16"),
        ({"q_mode": "mxfp8", "q_bits": 4}, "mode mxfp8 has 8"),
        ({"q_mode": "mxfp8", "quant_method": "awq"}, "for --q-mode affine only"),
        (
            {"quant_predicate": "mixed_3_6", "q_bits": 8},
            "--q-bits would have no effect with --quant",
        ),
        ({"calibration": "multimodal"}, "no effect without --quant-method awq"),
        ({"q_mode": "gguf"}, "'gguf' does not exist; MLX has affine, mxfp4"),
        ({"dequantize": True}, "either --quantize or --dequantize"),
        ({"calibration_data": "pictures"}, "needs --quant-method awq --calibration multimodal"),
        (
            {"quant_method": "awq", "calibration": "multimodal", "calibration_data": "nowhere"},
            "nowhere is no directory",
        ),
    ],
)
def test_settings_that_mlx_does_not_support_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuantizeOptions(quantize=True, **settings).check()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"q_bits": 8}, "--q-bits"),
        ({"q_group_size": 64}, "--q-group-size"),
        ({"q_mode": "mxfp4"}, "--q-mode"),
        ({"quant_predicate": "mixed_3_6"}, "--quant-predicate"),
        ({"quant_method": "awq"}, "--quant-method awq"),
    ],
)
def test_settings_without_effect_are_not_ignored(settings, name):
    with pytest.raises(ValueError, match=f"{name} would have no effect without -q"):
        QuantizeOptions(**settings).check()
