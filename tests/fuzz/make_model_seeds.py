"""Writes the seeds of the fuzz targets gguf, safetensors, config and requests: the smallest models that load."""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent / "fixtures" / "models"


def put(target, name, data):
    path = HERE / "corpus" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def matrices(hidden, ffn, vocab, heads, kv_heads, head_dim):
    """Canonical name: [rows, cols], of one layer."""
    q, kv = heads * head_dim, kv_heads * head_dim
    return {"q": [q, hidden], "k": [kv, hidden], "v": [kv, hidden], "o": [hidden, q],
            "gate": [ffn, hidden], "up": [ffn, hidden], "down": [hidden, ffn]}


# GGUF

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, BF16 = 0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 30
BLOCK = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q5_0: (32, 22), Q5_1: (32, 24), Q8_0: (32, 34), IQ4_NL: (32, 18),
         Q2_K: (256, 84), Q3_K: (256, 110), Q4_K: (256, 144), Q5_K: (256, 176), Q6_K: (256, 210)}  # elements, bytes


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item):
    if isinstance(item, bool): return struct.pack("<I?", 7, item)
    if isinstance(item, int): return struct.pack("<II", 4, item)
    if isinstance(item, float): return struct.pack("<If", 6, item)
    if isinstance(item, str): return struct.pack("<I", 8) + text(item)
    kinds = {str: 8, int: 5, float: 6}
    body = b"".join(text(v) if isinstance(v, str) else struct.pack("<i" if isinstance(v, int) else "<f", v) for v in item)
    return struct.pack("<IIQ", 9, kinds[type(item[0])], len(item)) + body


def gguf(values, tensors):
    table, data = b"", b""
    for name, (shape, kind) in tensors.items():
        elements, size = BLOCK[kind]
        count = 1
        for n in shape: count *= n
        data += bytes(-len(data) % 32)
        table += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        table += struct.pack("<IQ", kind, len(data))
        data += bytes(i * 37 % 251 for i in range(count // elements * size))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    out += b"".join(text(key) + value(item) for key, item in values.items()) + table
    return out + bytes(-len(out) % 32) + data


def gguf_model(arch, kind, tokenizer, hidden=32, ffn=32, vocab=8, heads=1, kv_heads=1, head_dim=32, extra=(), norms=(), kinds={}, experts=0, **more):
    values = {"general.architecture": arch, f"{arch}.context_length": 64, f"{arch}.embedding_length": hidden, f"{arch}.block_count": 1,
              f"{arch}.feed_forward_length": ffn, f"{arch}.attention.head_count": heads, f"{arch}.attention.head_count_kv": kv_heads,
              f"{arch}.attention.key_length": head_dim, f"{arch}.attention.value_length": head_dim,
              f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.rope.freq_base": 10000.0, **more, **tokenizer}
    tensors = {"token_embd.weight": ([vocab, hidden], kind), "output_norm.weight": ([hidden], F32)}
    names = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    for name, shape in matrices(hidden, ffn, vocab, heads, kv_heads, head_dim).items():
        stacked = experts and name in ("gate", "up", "down")
        tensors[f"blk.0.{names[name]}{'_exps' if stacked else ''}.weight"] = ([experts] * bool(stacked) + shape, kinds.get(name, kind))
    if experts: tensors["blk.0.ffn_gate_inp.weight"] = ([experts, hidden], F32)
    for name in ["attn_norm", "ffn_norm", *norms]: tensors[f"blk.0.{name}.weight"] = ([hidden], F32)
    for name, shape in extra: tensors[f"blk.0.{name}"] = (shape, F32)
    return gguf(values, tensors)


def make_gguf():
    g = "tokenizer.ggml."
    bpe = {g + "model": "gpt2", g + "pre": "llama-bpe", g + "tokens": ["<s>", "a", "b", "ab", "\u0120", "\u0120a"], g + "token_type": [3, 1, 1, 1, 1, 1],
           g + "merges": ["a b", "\u0120 a"], g + "bos_token_id": 0, g + "eos_token_id": 0, g + "add_bos_token": True,
           "tokenizer.chat_template": "{{ messages }}"}
    spm = {g + "model": "llama", g + "tokens": ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "\u2581a"], g + "token_type": [2, 3, 3, 6, 1, 1, 1],
           g + "scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0], g + "add_space_prefix": True, g + "bos_token_id": 1, g + "eos_token_id": 2}
    unigram = {**spm, g + "model": "t5", g + "unknown_token_id": 0}
    small = dict(hidden=16, ffn=16, heads=2, head_dim=8)
    put("gguf", "llama_q4_0", gguf_model("llama", Q4_0, spm))
    put("gguf", "llama_q8_0", gguf_model("llama", Q8_0, {}))
    put("gguf", "llama_f16", gguf_model("llama", F16, bpe, **small))
    biases = [(f"attn_{x}.bias", [16]) for x in "qkv"]
    put("gguf", "qwen2_f16", gguf_model("qwen2", F16, unigram, extra=biases, **{**small, "kv_heads": 2}))
    put("gguf", "qwen3_f16", gguf_model("qwen3", F16, bpe, extra=[("attn_q_norm.weight", [8]), ("attn_k_norm.weight", [8])], **small))
    put("gguf", "gemma3_f16", gguf_model("gemma3", F16, spm, norms=["post_attention_norm", "post_ffw_norm"],
        extra=[("attn_q_norm.weight", [8]), ("attn_k_norm.weight", [8])], **small, **{"gemma3.attention.sliding_window": 16}))
    # Rows of 256 for the K formats, few of them; the rest in what fits.
    wide = dict(hidden=256, ffn=8, heads=1, head_dim=8)
    put("gguf", "llama_k", gguf_model("llama", F16, {}, kinds={"q": Q2_K, "k": Q3_K, "v": Q4_K, "gate": Q5_K, "up": Q6_K}, **wide))
    put("gguf", "llama_32", gguf_model("llama", Q4_0, {}, kinds={"q": Q4_1, "k": Q5_0, "v": Q5_1, "gate": IQ4_NL, "up": BF16}))
    counts = lambda arch: {f"{arch}.expert_count": 2, f"{arch}.expert_used_count": 1}
    put("gguf", "mixtral_q8_0", gguf_model("llama", Q8_0, {}, experts=2, **counts("llama")))
    put("gguf", "qwen3moe_q4_k", gguf_model("qwen3moe", F16, {}, experts=2, extra=[("attn_q_norm.weight", [8]), ("attn_k_norm.weight", [8])],
        kinds={"gate": Q4_K, "up": Q4_K}, **wide, **counts("qwen3moe"), **{"qwen3moe.expert_feed_forward_length": 8}))


# safetensors and config.json

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
         "num_hidden_layers": 1, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}


def safetensors(tensors):
    header, data = {}, b""
    for name, (dtype, shape, body) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(body)]}
        data += body
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def filled(count):
    return bytes(i * 37 % 113 for i in range(count))


def plain(name, shape, hidden_bytes=2):
    return {name + ".weight": ("F16", shape, filled(shape[0] * shape[1] * hidden_bytes))}


def awq(name, shape):
    n, k = shape
    return {name + ".qweight": ("I32", [k, n // 8], filled(k * n // 2)), name + ".qzeros": ("I32", [k // 32, n // 8], filled(k // 32 * n // 2)),
            name + ".scales": ("F16", [k // 32, n], filled(k // 32 * n * 2))}


def gptq(name, shape):
    n, k = shape
    groups = b"".join(struct.pack("<i", i // 32) for i in range(k))
    return {name + ".qweight": ("I32", [k // 8, n], filled(k * n // 2)), name + ".qzeros": ("I32", [k // 32, n // 8], filled(k // 32 * n // 2)),
            name + ".scales": ("F16", [k // 32, n], filled(k // 32 * n * 2)), name + ".g_idx": ("I32", [k], groups)}


def int4(name, shape):
    n, k = shape
    return {name + ".weight_packed": ("I32", [n, k // 8], filled(n * k // 2)), name + ".weight_scale": ("BF16", [n, k // 32], filled(n * k // 16)),
            name + ".weight_zero_point": ("I32", [n // 8, k // 32], filled(n // 8 * (k // 32) * 4)),
            name + ".weight_shape": ("I64", [2], struct.pack("<2q", n, k))}


def int8(name, shape):
    n, k = shape
    return {name + ".weight": ("I8", shape, filled(n * k)), name + ".weight_scale": ("BF16", [n, 1], filled(n * 2))}


def fp8(name, shape):
    return {name + ".weight": ("F8_E4M3", shape, filled(shape[0] * shape[1])), name + ".weight_scale": ("F32", [1], struct.pack("<f", 0.01))}


def fp8_block(name, shape):
    return {name + ".weight": ("F8_E4M3", shape, filled(shape[0] * shape[1])),
            name + ".weight_scale_inv": ("F32", [-(-shape[0] // 128), -(-shape[1] // 128)], struct.pack("<f", 0.01))}


def checkpoint(pack, scheme, hidden=32, ffn=32, heads=1, head_dim=32):
    config = {**LLAMA, "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": head_dim,
              "vocab_size": 8}
    if scheme: config["quantization_config"] = scheme
    tensors = {"model.embed_tokens.weight": ("F16", [8, hidden], filled(16 * hidden)), "model.norm.weight": ("F32", [hidden], filled(4 * hidden))}
    for name, shape in matrices(hidden, ffn, 8, heads, 1, head_dim).items():
        stem = "mlp." if name in ("gate", "up", "down") else "self_attn."
        tensors.update(pack(f"model.layers.0.{stem}{name}_proj", shape))
    for name in ("input_layernorm", "post_attention_layernorm"): tensors[f"model.layers.0.{name}.weight"] = ("F16", [hidden], filled(2 * hidden))
    return json.dumps(config, separators=(",", ":")).encode() + b"\0" + safetensors(tensors)


def make_safetensors():
    def scheme(model): return json.loads((FIXTURES / model / "config.json").read_text())["quantization_config"]
    put("safetensors", "plain", checkpoint(plain, None, hidden=16, ffn=16, heads=2, head_dim=8))
    put("safetensors", "awq", checkpoint(awq, {**scheme("llama-wide-awq"), "group_size": 32}))
    put("safetensors", "gptq", checkpoint(gptq, scheme("llama-plain-gptq_act")))
    put("safetensors", "int4", checkpoint(int4, scheme("llama-plain-int4")))
    put("safetensors", "int8", checkpoint(int8, scheme("llama-wide-int8")))
    put("safetensors", "fp8", checkpoint(fp8, scheme("llama-plain-fp8")))
    put("safetensors", "fp8_block", checkpoint(fp8_block, scheme("llama-wide-fp8_block")))


def make_config():
    for path in sorted(FIXTURES.glob("*/config.json")):
        config = json.dumps(json.loads(path.read_text()), separators=(",", ":")).encode()
        generation = path.parent / "generation_config.json"
        if generation.exists(): config += b"\0" + generation.read_bytes()
        put("config", path.parent.name, config)


# Requests: protobuf's wire format by hand; a method byte comes first (requests_fuzz.cc).

def varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n >= 128: out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, item):
    if isinstance(item, float): return varint(number << 3 | 5) + struct.pack("<f", item)
    if isinstance(item, int): return varint(number << 3) + varint(item)
    body = item.encode() if isinstance(item, str) else item
    return varint(number << 3 | 2) + varint(len(body)) + body


def message(*fields):
    return b"".join(field(number, item) for number, item in fields)


def make_requests():
    ids = b"".join(varint(n) for n in (104, 101, 257, 258))
    sampling = message((1, 0.7), (2, 5), (3, 0.9), (4, 0.1), (5, 1.1), (6, 0.5), (7, -0.5), (8, message((1, 97), (2, 2.5))), (9, ids), (10, b"\x05"), (11, 42))
    stops = message((1, 12), (2, 2), (3, "the"), (3, "\u4e00"), (4, b"\x61\x62"), (5, 1), (6, 1))
    put("requests", "text", b"\0" + message((2, "hello w\u00f6rld"), (6, message((1, 8)))))
    put("requests", "all", b"\2" + message((1, "id"), (3, message((1, ids))), (5, sampling), (6, stops), (7, message((1, 2), (2, 1))), (8, 3), (9, 1), (10, -1), (12, 0), (13, 0), (14, "salt")))
    put("requests", "resumed", b"\2" + message((2, "a"), (4, ids), (5, message((11, 7))), (6, message((1, 9)))))
    put("requests", "aborted", b"\1" + message((2, "a"), (6, message((1, 60), (5, 1))), (8, 2)))
    put("requests", "echo", b"\3" + message((2, ""), (3, message((1, b"\x61"))), (6, message((1, 0))), (9, 1)))
    put("requests", "attach", b"\4" + message((1, "id"), (2, b"\0")))
    put("requests", "abort", b"\5" + message((1, "id")))
    put("requests", "tokenize", b"\6" + message((1, "h\u00e9llo the"), (2, 1)))
    put("requests", "detokenize", b"\7" + message((1, ids), (2, 1)))


for make in (make_gguf, make_safetensors, make_config, make_requests): make()
