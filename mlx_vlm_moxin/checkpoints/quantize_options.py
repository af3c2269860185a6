"""How a source is to be stored: the settings of ``mlx_vlm.convert``, checked."""

from dataclasses import dataclass
from pathlib import Path

from mlx_vlm.quant_utils import QUANTIZATION_MODE_DEFAULTS

# What mx.quantize has for mode "affine"; each other mode has one group size and width.
AFFINE_GROUP_SIZES = (32, 64, 128)
AFFINE_BITS = (2, 3, 4, 5, 6, 8)


def mlx_settings(mode: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Group sizes and numbers of bits that MLX has for ``mode``.

    Raises:
        ValueError: if it has no such mode.
    """
    if mode == "affine":
        return AFFINE_GROUP_SIZES, AFFINE_BITS
    if mode not in QUANTIZATION_MODE_DEFAULTS:
        raise ValueError(f"MLX has no mode {mode!r}, only {', '.join(QUANTIZATION_MODE_DEFAULTS)}")
    group_size, bits = QUANTIZATION_MODE_DEFAULTS[mode]
    return (group_size,), (bits,)


@dataclass(frozen=True)
class QuantizeOptions:
    """Settings under the names that ``mlx_vlm.convert`` gives them.

    ``dtype`` None means the source's own choice, None elsewhere MLX's default.
    """

    quantize: bool = False
    q_group_size: int | None = None
    q_bits: int | None = None
    q_mode: str = "affine"
    quant_predicate: str | None = None
    quant_method: str = "rtn"
    calibration: str = "text"
    calibration_data: str | None = None
    dtype: str | None = None
    dequantize: bool = False

    def _given(self) -> list[str]:
        """Options on the command line that say something about quantising."""
        given = {
            "--q-group-size": self.q_group_size is not None,
            "--q-bits": self.q_bits is not None,
            "--q-mode": self.q_mode != "affine",
            "--quant-predicate": self.quant_predicate is not None,
            "--quant-method awq": self.quant_method == "awq",
        }
        return [name for name, is_given in given.items() if is_given]

    def check(self) -> None:
        """Refuse settings that MLX does not have or that contradict each other.

        Raises:
            ValueError: naming the setting and what there is instead.
        """
        if self.quantize and self.dequantize:
            raise ValueError("Choose either --quantize or --dequantize, not both")
        if self._given() and not self.quantize:
            raise ValueError(f"{', '.join(self._given())} would have no effect without -q")
        if self.quant_method == "awq" and self.q_mode != "affine":
            raise ValueError("--quant-method awq searches its scales for --q-mode affine only")
        if self.calibration_data is not None:
            if self.quant_method != "awq" or self.calibration != "multimodal":
                raise ValueError(
                    "--calibration-data needs --quant-method awq --calibration multimodal"
                )
            if not Path(self.calibration_data).is_dir():
                raise ValueError(f"--calibration-data: {self.calibration_data} is no directory")
        group_sizes, bits = mlx_settings(self.q_mode)
        for name, value, known in (
            ("--q-group-size", self.q_group_size, group_sizes),
            ("--q-bits", self.q_bits, bits),
        ):
            if value is not None and value not in known:
                raise ValueError(
                    f"{name} {value} does not exist in MLX; mode {self.q_mode} has "
                    f"{', '.join(map(str, known))}"
                )
