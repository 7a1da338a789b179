#!/usr/bin/env python3
"""Perplexity of one model in every GGUF format, beside llama.cpp's on the same files.

usage: perplexity.py TRIREME MODEL.gguf [OUT.jsonl] [--formats q4_k,...] [--no-llama] [--folder DIR]
                     [--text FILE]

MODEL is scored as it is and quantized anew to each format (quantize_gguf.py; files are kept in
DIR). The text, perplexity.txt beside this script or FILE, is scored in pieces of 512 tokens, each
alone.
Needs gguf, numpy and, but for --no-llama, llama-cpp-python. One JSON object a line: `ratio` is our
perplexity over llama.cpp's, or over that of MODEL itself with --no-llama.
"""
import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from quantize_gguf import convert

FORMATS = "q8_0,q4_0,q4_1,q5_0,q5_1,iq4_nl,q2_k,q3_k,q4_k,q5_k,q6_k"
PIECE = 512


def run(trireme, *arguments, stdin=""):
    done = subprocess.run([trireme, *map(str, arguments), "--json"], input=stdin, text=True,
                          capture_output=True, check=True)
    return json.loads(done.stdout)


def pieces_of(trireme, model, text):
    ids = run(trireme, "tokenize", "--model", model, "--no-special", stdin=text)["token_ids"]
    return [ids[i:i + PIECE] for i in range(0, len(ids) - 1, PIECE) if len(ids) - i > 64]


def ours(trireme, model, pieces):
    picked = []
    for ids in pieces:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(ids, file)
            file.flush()
            picked += run(trireme, "score", "--model", model, "--tokens", file.name)["logprobs"]
    return picked


def theirs(model, pieces):
    import llama_cpp
    llm = llama_cpp.Llama(str(model), n_ctx=PIECE, n_batch=PIECE, n_threads=2,
                          n_threads_batch=2, logits_all=True, verbose=False)
    picked = []
    for ids in pieces:
        llm.reset()
        llm.eval(ids)
        rows = np.array(llm.scores[:len(ids) - 1], np.float64)
        top = rows.max(1)
        sums = top + np.log(np.exp(rows - top[:, None]).sum(1))
        picked += (rows[np.arange(len(ids) - 1), ids[1:]] - sums).tolist()
    return picked


def perplexity(logprobs):
    return math.exp(-sum(logprobs) / len(logprobs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trireme")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", nargs="?", default="/dev/stdout")
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--text", type=Path, default=Path(__file__).with_name("perplexity.txt"))
    args = parser.parse_args()
    text = args.text.read_text()
    pieces = pieces_of(args.trireme, args.model, text)
    with tempfile.TemporaryDirectory() as folder, open(args.out, "w") as out:
        base = None
        for kind in ["as it is", *args.formats.split(",")]:
            model = args.model
            if kind != "as it is":
                model = (args.folder or Path(folder)) / f"{kind}.gguf"
                if not model.exists():
                    convert(args.model, model, kind.upper())
            value = perplexity(ours(args.trireme, model, pieces))
            base = base or value
            other = base if args.no_llama else perplexity(theirs(model, pieces))
            print(json.dumps(dict(
                name=f"perplexity {kind}", value=round(value, 4), unit="",
                baseline=f"{'the file itself' if args.no_llama else 'llama.cpp'} {other:.4f}",
                ratio=round(value / other, 5))), file=out, flush=True)


if __name__ == "__main__":
    main()
