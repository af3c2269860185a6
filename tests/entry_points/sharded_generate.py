"""Run by ``mlx.launch``: answers by tensor parallelism, one line of JSON per checkpoint.

Arguments: prompt, number of tokens, picture, checkpoints. mlx-vlm answers about the
picture for each checkpoint, then mlx-lm without the picture for the first.
"""

import json
import sys

import mlx.core as mx
import mlx_lm.utils
import mlx_vlm.utils
from mlx_lm import stream_generate
from mlx_vlm import generate


def report(group: mx.distributed.Group, model, token_ids: list[int]) -> None:
    if group.rank() == 0:
        heads = model.layers[0].self_attn.n_heads
        answer = {"token_ids": token_ids, "processes": group.size(), "heads": heads}
        print(json.dumps(answer), flush=True)


def main() -> None:
    prompt, tokens, image, *checkpoints = sys.argv[1:]
    group = mx.distributed.init()
    for checkpoint in checkpoints:
        model, processor = mlx_vlm.utils.sharded_load(checkpoint)
        result = generate(model, processor, prompt, [image], max_tokens=int(tokens))
        report(group, model, result.token_ids)
    model, tokenizer = mlx_lm.utils.sharded_load(checkpoints[0])
    chunks = stream_generate(model, tokenizer, prompt, max_tokens=int(tokens))
    report(group, model, [chunk.token for chunk in chunks])


if __name__ == "__main__":
    main()
