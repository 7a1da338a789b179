#!/usr/bin/env python3
"""Writes a Llama-shaped GGUF file with random weights, for speed measurements without a checkpoint.

usage: make_model.py OUT.gguf [--format FORMAT] [--hidden N] [--layers N] [--heads N]
                     [--kv-heads N] [--ffn N] [--vocab N] [--context N] [--seed N]

The default is a model of 1.1 billion parameters (TinyLlama's shape). Needs numpy. The file has no
tokenizer: use it with token ids (trireme bench does).
"""
import argparse
import struct

import numpy as np

# GGUF tensor type, elements and bytes of a block.
FORMATS = {"f32": (0, 1, 4), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q8_0": (8, 32, 34),
           "bf16": (30, 1, 2), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24), "iq4_nl": (20, 32, 18),
           "q2_k": (10, 256, 84), "q3_k": (11, 256, 110), "q4_k": (12, 256, 144),
           "q5_k": (13, 256, 176), "q6_k": (14, 256, 210)}
# Of a quantized block: where its scale is, the deviation of what the scale multiplies where bytes are
# random, where its minimum is, and the minimum over the scale that centres the values.
SCALES = {"q8_0": (0, 74.0), "q4_0": (0, 4.6), "q4_1": (0, 4.6, 2, -7.5), "q5_0": (0, 9.2),
          "q5_1": (0, 9.2, 2, -15.5), "iq4_nl": (0, 69.0), "q2_k": (80, 14.0, 82, 1.5),
          "q3_k": (108, 42.0), "q4_k": (0, 250.0, 2, 7.5), "q5_k": (0, 500.0, 2, 15.5),
          "q6_k": (208, 1360.0)}
UINT32, FLOAT32, STRING = 4, 6, 8
ALIGNMENT = 32


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(args):
    pairs = [("general.architecture", STRING, "llama"), ("general.name", STRING, "random"),
             ("llama.block_count", UINT32, args.layers),
             ("llama.context_length", UINT32, args.context),
             ("llama.embedding_length", UINT32, args.hidden),
             ("llama.feed_forward_length", UINT32, args.ffn),
             ("llama.attention.head_count", UINT32, args.heads),
             ("llama.attention.head_count_kv", UINT32, args.kv_heads),
             ("llama.rope.dimension_count", UINT32, args.hidden // args.heads),
             ("llama.rope.freq_base", FLOAT32, 10000.0),
             ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
             ("llama.vocab_size", UINT32, args.vocab),
             ("tokenizer.ggml.model", STRING, "none")]
    out = b""
    for key, kind, value in pairs:
        body = {STRING: lambda v: text(v), UINT32: lambda v: struct.pack("<I", v),
                FLOAT32: lambda v: struct.pack("<f", v)}[kind](value)
        out += text(key) + struct.pack("<I", kind) + body
    return len(pairs), out


def tensors(args):
    """(name, rows, cols, format) of every tensor; vectors have rows = 0."""
    kv = args.hidden // args.heads * args.kv_heads
    yield "token_embd.weight", args.vocab, args.hidden, args.format
    yield "output_norm.weight", 0, args.hidden, "f32"
    yield "output.weight", args.vocab, args.hidden, args.format
    for i in range(args.layers):
        yield f"blk.{i}.attn_norm.weight", 0, args.hidden, "f32"
        yield f"blk.{i}.ffn_norm.weight", 0, args.hidden, "f32"
        for name, rows, cols in [("attn_q", args.hidden, args.hidden), ("attn_k", kv, args.hidden),
                                 ("attn_v", kv, args.hidden),
                                 ("attn_output", args.hidden, args.hidden),
                                 ("ffn_gate", args.ffn, args.hidden),
                                 ("ffn_up", args.ffn, args.hidden),
                                 ("ffn_down", args.hidden, args.ffn)]:
            yield f"blk.{i}.{name}.weight", rows, cols, args.format


def size(rows, cols, name):
    _, elements, width = FORMATS[name]
    return max(rows, 1) * cols // elements * width


def values(random, rows, cols, name):
    """Bytes of one tensor: weights of about unit gain, norms of one."""
    if rows == 0:
        return np.ones(cols, np.float32).tobytes()
    scale = cols**-0.5
    if name == "f32":
        return (random.standard_normal((rows, cols), np.float32) * np.float32(scale)).tobytes()
    if name == "bf16":
        wide = random.standard_normal((rows, cols), np.float32) * np.float32(scale)
        return (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    _, elements, width = FORMATS[name]
    blocks = random.integers(0, 256, (rows * cols // elements, width), np.uint8)
    at, deviation, *least = SCALES[name]
    step = scale / deviation
    blocks[:, at:at + 2] = np.array([step], np.float16).view(np.uint8)
    if least:
        blocks[:, least[0]:least[0] + 2] = np.array([step * least[1]], np.float16).view(np.uint8)
    return blocks.tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    for name, default in [("hidden", 2048), ("layers", 22), ("heads", 32), ("kv-heads", 4),
                          ("ffn", 5632), ("vocab", 32000), ("context", 8192), ("seed", 1)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    random = np.random.default_rng(args.seed)
    listed = list(tensors(args))
    count, pairs = metadata(args)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(listed), count) + pairs
    offset = 0
    for name, rows, cols, form in listed:
        shape = [cols, rows] if rows else [cols]
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", FORMATS[form][0], offset)
        offset += -(-size(rows, cols, form) // ALIGNMENT) * ALIGNMENT
    with open(args.out, "wb") as file:
        file.write(header + b"\0" * (-len(header) % ALIGNMENT))
        for _, rows, cols, form in listed:
            data = values(random, rows, cols, form)
            assert len(data) == size(rows, cols, form)
            file.write(data + b"\0" * (-len(data) % ALIGNMENT))


if __name__ == "__main__":
    main()
