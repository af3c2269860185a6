"""The source in a form that mlx-vlm loads, as the baseline for comparisons."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles


@contextmanager
def loadable_source(
    source: Source, files: SourceFiles, place: Path, quiet: bool = False
) -> Iterator[Path]:
    """The source's directory, or a temporary conversion that is removed after the context.

    mlx-vlm cannot load native runs and OminiX exports; converting them without quantisation
    changes only the layout.

    Args:
        source, files: the opened source, and the files and options that it was opened from.
        place: directory that receives the temporary conversion.
        quiet: no progress bars.

    Raises:
        OSError, ValueError: one line that says what is wrong.
    """
    if source.is_loadable:
        yield source.directory
        return
    with tempfile.TemporaryDirectory(prefix=".baseline-", dir=place) as folder:
        yield convert(files, Path(folder) / "model", QuantizeOptions(), quiet=quiet).directory
