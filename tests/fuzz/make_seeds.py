"""Writes the seeds of the fuzz targets: small files of every kind of tokenizer. Needs protobuf and sentencepiece."""

import base64
import json
import pathlib
import struct

from sentencepiece import sentencepiece_model_pb2 as proto

OUT = pathlib.Path(__file__).parent / "corpus"
MARK = "\u2581"


def put(target, name, data):
    path = OUT / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def charsmap():
    """One rule: "a" becomes "b"."""
    units = [0] * 512
    units[0], at = 256 << 10, 256 ^ ord("a")
    units[at], units[at ^ 7] = ord("a") | 1 << 8 | 7 << 10, 0x80000000
    return struct.pack("<I512I", 2048, *units) + b"b\0"


def model(kind, byte_fallback, **normalizer):
    out = proto.ModelProto()
    for piece, type_ in [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("\n", 4)]: out.pieces.add(piece=piece, score=0, type=type_)
    if byte_fallback:
        for byte in range(256): out.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    for i, piece in enumerate([MARK, "a", "l", "o", "lo", MARK + "w", "He", "Hel", "aa", "aaaa", "\u4e00"]):
        out.pieces.add(piece=piece, score=-float(i + 1))
    out.trainer_spec.model_type, out.trainer_spec.byte_fallback = kind, byte_fallback
    for key, value in normalizer.items(): setattr(out.normalizer_spec, key, value)
    return out.SerializeToString()


def file(model, normalizer, pre_tokenizer, decoder, post=None):
    return json.dumps({"added_tokens": [{"id": 0, "content": "<s>", "special": True}, {"id": 99, "content": "12", "rstrip": True, "single_word": True}],
                       "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post, "decoder": decoder, "model": model})


def main():
    vocab = {"<s>": 0, "a": 1, "l": 2, "o": 3, "lo": 4, MARK: 5, "aa": 6, "aaaa": 7, "H": 8, "e": 9, "<0x41>": 10}
    bpe = {"type": "BPE", "vocab": vocab, "merges": ["l o", "a a", ["aa", "aa"]], "byte_fallback": True, "unk_token": "<s>", "fuse_unk": True}
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [[t, -float(i)] for t, i in vocab.items()]}
    meta = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first"}
    space, back = {"String": " "}, [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                                    {"type": "Strip", "content": " ", "start": 1, "stop": 1}]
    decoder = {"type": "Sequence", "decoders": back}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True}
    put("tokenizer_json", "byte_level", file(dict(bpe, byte_fallback=False, ignore_merges=True), {"type": "NFC"}, byte_level, {"type": "ByteLevel"},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [0]}}}))
    put("tokenizer_json", "splits", file(dict(bpe, byte_fallback=False), None, {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s"}, "behavior": "MergedWithNext", "invert": True}, byte_level]},
        {"type": "ByteLevel"}))
    put("tokenizer_json", "llama", file(bpe, {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK},
        {"type": "Replace", "pattern": space, "content": MARK}]}, None, decoder))
    put("tokenizer_json", "metaspace", file(bpe, {"type": "Sequence", "normalizers": [{"type": t} for t in ("NFKD", "Lowercase", "NFKC", "NFD", "Strip")]}, meta, meta))
    put("tokenizer_json", "unigram", file(unigram, {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap":
        base64.b64encode(charsmap()).decode()}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": MARK}]},
        {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta]}, meta))
    put("tokenizer_model", "bpe", model(2, True, add_dummy_prefix=True, remove_extra_whitespaces=False))
    put("tokenizer_model", "unigram", model(1, False, precompiled_charsmap=charsmap()))
    put("tokenizer_model", "unigram_bytes", model(1, True, escape_whitespaces=False, precompiled_charsmap=charsmap()))
    put("tokenizer_model", "ranks", "YQ== 0\nYg== 1\nYWI= 2\n")
    tokens = [bytes([b]) for b in range(97, 105)] + [b"ab", b"aa", b"aaaa"]
    put("tekken", "small", json.dumps({"config": {"pattern": "\\p{L}+|\\s", "default_vocab_size": 5 + len(tokens), "default_num_special_tokens": 5},
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(tokens)],
        "special_tokens": [{"rank": 1, "token_str": "<s>"}]}))
    for name, pattern in {"class": "[^\\s\\p{L}\\p{N}]?\\p{L}+|\\d{1,3}(?=(?:\\d{3})*\\b)", "cases": "(?i:'s|'t)|\\w+$|^.|\\h\\H|[[:alpha:]]", "points": "\\u4e00|[\\x{41}-\\x{5a}]|\\P{Lu}"}.items():
        put("pattern", name, pattern + "\nIt's 12345 \u4e00\u4e8c a\u0308\U0001F468\u200d\n\n  x")


main()
