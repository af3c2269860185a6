"""MLX's kernels that a server needs when the first answers leave a batch.

MLX compiles each when it is first used on a machine, for about 4 s, while all answers wait. Here
this is done while weights are read.
"""

from collections.abc import Mapping

import mlx.core as mx
from mlx_vlm.models.moxin.cuda import device, precompile

# Of the numbers of tokens and of sampled tokens; the keys and values have the model's.
ID_DTYPES = (mx.int32, mx.uint32)
EMBEDDINGS = "embed_tokens.weight"


def compile_for(weights: Mapping[str, mx.array]) -> None:
    """Compile, in a thread, what a batch of the model with ``weights`` will need."""
    if not device.enabled():
        return
    found = [values.dtype for name, values in weights.items() if name.endswith(EMBEDDINGS)]
    precompile.run([lambda: take_rows([*found, *ID_DTYPES])])


def take_rows(dtypes: list[mx.Dtype]) -> None:
    """Take rows of small arrays, as mlx-vlm does of all arrays of a batch."""
    for dtype in dtypes:
        mx.eval(mx.zeros((2, 1), dtype)[mx.array([1], mx.int32)])
