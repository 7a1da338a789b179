#!/usr/bin/env python3
"""Speed of the tokenizers on one core, beside Hugging Face's tokenizers, SentencePiece and tiktoken.

    bench/tokenizer_suite.py BUILD_FOLDER [CACHE_FOLDER [NAME…]] >> bench/results/tokenizer.jsonl

Needs tokenizers, sentencepiece and tiktoken; CACHE_FOLDER is that of
tests/fixtures/check_tokenizers.py, whose real vocabularies are then measured too. Everything in
CPU seconds, so that a busy machine disturbs little. Lines as bench/README.md has them: MB/s of 1 MB of text; the baseline of
ordinary text is the other tokenizer, that of a hostile one our ordinary text.
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


def main(build, cache=None, *names):
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
            if names and not any(n in name for n in names): continue
            judge = make()
            cases.append((name, judge.path, lambda judge=judge: judged(judge)))
    files = {}
    for name, text in texts().items():
        files[name] = work / f"{name}.txt"
        files[name].write_text(text, newline="")
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    about = {"device": f"{cpu}, one core", "commit": commit, "date": time.strftime("%Y-%m-%d"), "command": "bench/tokenizer_suite.py"}
    for name, path, other in cases:
        if names and not any(n in name for n in names): continue
        done = subprocess.run([program, path, *files.values()], capture_output=True, check=True, text=True)
        rows = {row["text"]: row for row in map(json.loads, done.stdout.splitlines())}
        kind, encode = other()
        for text, file in files.items():
            row = rows[text]
            result = {"name": f"tokenizer {name}, {text}", "value": row["encode_mb_s"], "unit": "MB/s"}
            if text == "ordinary":  # the others take minutes on some of the hostile ones
                content = file.read_text()
                theirs = row["bytes"] / 1e6 / seconds(lambda: encode(content))
                result |= {"baseline": round(theirs, 3), "baseline_of": kind, "ratio": round(row["encode_mb_s"] / theirs, 2),
                           "decode_mb_s": row["decode_mb_s"], "stream_ns_per_id": row["stream_ns_per_id"]}
            else:
                usual = rows["ordinary"]["encode_mb_s"]
                result |= {"baseline": usual, "ratio": round(row["encode_mb_s"] / usual, 2)}
            print(json.dumps(result | about), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
