#!/usr/bin/env python3
"""Speed of the tokenizers on one core, beside Hugging Face's tokenizers, SentencePiece and tiktoken.

    bench/tokenizer_suite.py BUILD_FOLDER [CACHE_FOLDER] >> bench/results/tokenizer.jsonl

Needs tokenizers, sentencepiece and tiktoken; CACHE_FOLDER is that of
tests/fixtures/check_tokenizers.py, whose real vocabularies are then measured too. Everything in
CPU seconds, so that a busy machine disturbs little. One JSON object a case: ours and theirs in MB/s (1 MB of text each), and
`of_ordinary`: how many times as long a hostile text takes as the ordinary one.
"""

import gzip
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests" / "fixtures"
sys.path.insert(0, str(FIXTURES))
BYTES = 1 << 20
HOSTILE = {"one letter": "a", "spaces": " ", "newlines": "\n", "joiners": "\u200d", "joined emoji": "\U0001F468\u200d",
           "digits": "7", "marks": "\u0308\u0323", "ideograph": "\u4e00", "cut special": "<|im_start", "marks of space": "\u2581",
           "ligature": "\uFDFA"}


def ordinary():
    from check_tokenizers import corpus
    texts = [t for t in corpus() if len(t) > 80 and sum(c.isascii() and (c.isalpha() or c == " ") for c in t) > len(t) - 4
             and len(set(t[:40])) > 5]
    return " ".join(texts)


def texts():
    whole = ordinary()
    out = {"ordinary": (whole + " ") * (BYTES // len(whole) + 1)}
    out["ordinary"] = out["ordinary"][:BYTES]
    for name, unit in HOSTILE.items():
        out[name] = unit * (BYTES // len(unit.encode())) + "x"
    return out


def seconds(body, rounds=3):
    best = 1e9
    for _ in range(rounds):
        begin = time.process_time()
        body()
        best = min(best, time.process_time() - begin)
    return best


def huggingface(path):
    from tokenizers import Tokenizer
    model = Tokenizer.from_file(str(path))
    return "tokenizers", lambda text: model.encode_batch_fast([text], add_special_tokens=False)


def judged(judge):
    kind = "sentencepiece" if hasattr(judge, "model") and hasattr(judge.model, "id_to_piece") else "tiktoken"
    return kind, judge.encode


def main(build, cache=None):
    program = pathlib.Path(build) / "bench" / "tokenizer_bench"
    work = pathlib.Path(tempfile.mkdtemp())
    cases = []
    for name in ("smollm2", "llama3", "qwen2", "gpt2", "llama2", "gemma", "t5"):
        folder = work / name
        folder.mkdir()
        path = folder / "tokenizer.json"
        path.write_bytes(gzip.open(FIXTURES / "tokenizer" / f"{name}.json.gz").read())
        cases.append((name, path, lambda path=path: huggingface(path)))
    if cache:
        import check_tokenizers
        for name, make in check_tokenizers.cases(pathlib.Path(cache)).items():
            judge = make()
            cases.append((name, judge.path, lambda judge=judge: judged(judge)))
    files = {}
    for name, text in texts().items():
        files[name] = work / f"{name}.txt"
        files[name].write_text(text, newline="")
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine())
    for name, path, other in cases:
        done = subprocess.run([program, path, *files.values()], capture_output=True, check=True, text=True)
        rows = {row["text"]: row for row in map(json.loads, done.stdout.splitlines())}
        kind, encode = other()
        for text, file in files.items():
            row = rows[text]
            result = {"tokenizer": name, "text": text, "bytes": row["bytes"], "ids": row["ids"], "ours_mb_s": row["encode_mb_s"],
                      "of_ordinary": round(rows["ordinary"]["encode_mb_s"] / row["encode_mb_s"], 2),
                      "decode_mb_s": row["decode_mb_s"], "stream_ns_per_id": row["stream_ns_per_id"]}
            if text == "ordinary":  # the others take minutes on some of the hostile ones
                content = file.read_text()
                theirs = row["bytes"] / 1e6 / seconds(lambda: encode(content))
                result |= {"other": kind, "theirs_mb_s": round(theirs, 3), "ratio": round(row["encode_mb_s"] / theirs, 2)}
            print(json.dumps(result | {"cpu": cpu}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
