"""A source as mlx-vlm loads it, to compare a conversion with."""

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
    """The source's own directory, or a conversion that is kept only for the context.

    mlx-vlm cannot load native runs and OminiX exports; a conversion of them that quantises
    nothing changes nothing but the layout.

    Args:
        source, files: the source, opened and as it was named.
        place: directory for the conversion.
        quiet: no progress bars.

    Raises:
        OSError, ValueError: one line that says what is wrong.
    """
    if source.is_loadable:
        yield source.directory
        return
    with tempfile.TemporaryDirectory(prefix=".baseline-", dir=place) as folder:
        yield convert(files, Path(folder) / "model", QuantizeOptions(), quiet=quiet).directory
