"""A GGUF of random weights in Moxin's sizes, for llama.cpp."""

from pathlib import Path

import numpy as np

from .peers.sizes import Sizes


def write_gguf(path: Path, kind: str, sizes: Sizes) -> None:
    """A Llama of random weights in the decoder's sizes, without a vocabulary.

    Args:
        path: the file.
        kind: ``Q8_0`` or ``Q4_0``, the format of all matrices.
        sizes: the decoder's.
    """
    import gguf

    text = sizes.config.text_config
    quantization = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    random = np.random.default_rng(0)
    kept: dict[tuple[int, int], np.ndarray] = {}

    def matrix(rows: int, columns: int) -> np.ndarray:
        """Random integers with scales of about 0.02 / 127, the same for matrices of one shape."""
        if (rows, columns) not in kept:
            shape = (rows, columns // block, block_bytes)
            blocks = random.integers(0, 256, shape, dtype=np.uint8)
            scale = 0.02 / (64 if kind == "Q8_0" else 4)
            blocks[..., :2] = np.array([scale], np.float16).view(np.uint8)
            kept[rows, columns] = blocks.reshape(rows, -1)
        return kept[rows, columns]

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_vocab_size(text.vocab_size)
    writer.add_tokenizer_model("none")

    def add(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", matrix(rows, columns), raw_dtype=quantization)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    hidden, inner = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    add("token_embd", text.vocab_size, hidden)
    for layer in range(text.num_hidden_layers):
        prefix = f"blk.{layer}."
        add_norm(f"{prefix}attn_norm")
        add(f"{prefix}attn_q", queries, hidden)
        add(f"{prefix}attn_k", keys, hidden)
        add(f"{prefix}attn_v", keys, hidden)
        add(f"{prefix}attn_output", hidden, queries)
        add_norm(f"{prefix}ffn_norm")
        add(f"{prefix}ffn_gate", inner, hidden)
        add(f"{prefix}ffn_up", inner, hidden)
        add(f"{prefix}ffn_down", hidden, inner)
    add_norm("output_norm")
    add("output", text.vocab_size, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
