"""The options of ``mlx_vlm.convert`` that say how to store a checkpoint, and their checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlx_vlm.models.moxin.quantization import MODES, supported


class OptionNames(NamedTuple):
    """The option or argument name before each value in messages."""

    bits: str
    group_size: str
    mode: str


CONVERT_OPTIONS = OptionNames("--q-bits ", "--q-group-size ", "--q-mode ")


def check_settings(
    bits: int | None, group_size: int | None, mode: str, names: OptionNames = CONVERT_OPTIONS
) -> None:
    """Refuse settings that MLX does not support; None means MLX's default.

    Raises:
        ValueError: naming the option, the value and the values that exist.
    """
    if mode not in MODES:
        raise ValueError(f"{names.mode}{mode!r} does not exist; MLX has {', '.join(MODES)}")
    group_sizes, widths = supported(mode)
    for name, value, known in (
        (names.bits, bits, widths),
        (names.group_size, group_size, group_sizes),
    ):
        # True == 1 in Python, but it is not a number of bits.
        if value is not None and (value not in known or isinstance(value, bool)):
            raise ValueError(
                f"{name}{value!r} does not exist in MLX; mode {mode} has "
                f"{', '.join(map(str, known))}"
            )


@dataclass(frozen=True)
class QuantizeOptions:
    """Options with the names of ``mlx_vlm.convert``.

    ``dtype`` None means the source's dtype; None for another option means MLX's default.
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
        """The given options that have an effect only with ``--quantize``."""
        given = {
            "--q-group-size": self.q_group_size is not None,
            "--q-bits": self.q_bits is not None,
            "--q-mode": self.q_mode != "affine",
            "--quant-predicate": self.quant_predicate is not None,
            "--quant-method awq": self.quant_method == "awq",
        }
        return [name for name, is_given in given.items() if is_given]

    def check(self) -> None:
        """Refuse options that do not exist, have no effect or contradict each other.

        Raises:
            ValueError: naming the option and the alternatives.
        """
        if self.quantize and self.dequantize:
            raise ValueError("Choose either --quantize or --dequantize, not both")
        if self._given() and not self.quantize:
            raise ValueError(f"{', '.join(self._given())} would have no effect without -q")
        settings = {"--q-group-size", "--q-bits", "--q-mode"} & {*self._given()}
        if self.quant_predicate is not None and settings:
            raise ValueError(
                f"{', '.join(sorted(settings))} would have no effect with --quant-predicate, "
                "which sets bits and group size of each layer"
            )
        is_awq = self.quant_method == "awq"
        if is_awq and self.q_mode != "affine":
            raise ValueError("--quant-method awq searches its scales for --q-mode affine only")
        if self.calibration != "text" and not is_awq:
            raise ValueError("--calibration would have no effect without --quant-method awq")
        if self.calibration_data is not None:
            if not is_awq or self.calibration != "multimodal":
                raise ValueError(
                    "--calibration-data needs --quant-method awq --calibration multimodal"
                )
            if not Path(self.calibration_data).is_dir():
                raise ValueError(f"--calibration-data: {self.calibration_data} is no directory")
        check_settings(self.q_bits, self.q_group_size, self.q_mode)
