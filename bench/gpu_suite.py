#!/usr/bin/env python3
"""Measures decode, prefill and throughput on this machine's GPUs and writes one JSON object a line.

usage: gpu_suite.py TRIREME OUT.jsonl [--quick] [--commit ID] [--benches DIR]

Random weights in the shapes of bench/shapes (--load-format dummy), so no checkpoint is needed. Every
figure is a ratio within its run: to the read bandwidth or the bf16 matrix rate that `trireme bench`
measures beside it. Layouts over several GPUs are measured where there are as many. With --benches the
kernel benches of that folder (cuda_*_bench) are run too and their lines taken over.
"""
import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def gpus():
    lines = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                           capture_output=True, text=True, check=True).stdout.split("\n")
    return [line.strip() for line in lines if line.strip()]


def kv_bytes_per_token(shape):
    """Of a Hugging Face config with bf16 KV: K and V of every layer."""
    config = json.loads((HERE / "shapes" / shape / "config.json").read_text())
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2


class Suite:
    def __init__(self, args):
        self.args = args
        self.gpus = gpus()
        self.out = open(args.out, "w")

    def bench(self, what, shape, *flags, ranks=1):
        command = [self.args.trireme, "bench", what, "--device", "cuda", "--load-format", "dummy",
                   "--model", str(HERE / "shapes" / shape), "--json", *map(str, flags)]
        if ranks > 1:
            command = [str(HERE.parent / "launch/mpirun"), "-n", str(ranks), *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        shown = " ".join("trireme" if part == self.args.trireme else
                         "bench/shapes/" + shape if part.endswith("shapes/" + shape) else
                         "launch/mpirun" if part.endswith("launch/mpirun") else part
                         for part in command)
        if done.returncode != 0:
            print(f"{shown}: {done.stderr}", file=sys.stderr)
            return None, shown
        return json.loads(done.stdout), shown

    def write(self, line, ranks=1):
        line.update({"device": f"{ranks} x {self.gpus[0]}", "commit": self.args.commit,
                     "date": datetime.date.today().isoformat()})
        self.out.write(json.dumps(line) + "\n")
        self.out.flush()
        print(f"{line['name']:52} {line['value']:12.5g} {line['unit']:10} ratio {line['ratio']:.3f}",
              flush=True)

    def decode(self, label, shape, *flags, ranks=1):
        found, command = self.bench("decode", shape, *flags, ranks=ranks)
        if found is None:
            return
        self.write({"name": f"decode {label}", "value": round(found["value"], 2),
                    "unit": "tokens/s", "ratio": round(found["ratio"], 4), "command": command,
                    "baseline": f"read bandwidth {found['read_bandwidth'] / 1e9:.0f} GB/s"}, ranks)

    def prefill(self, label, shape, *flags, ranks=1):
        found, command = self.bench("prefill", shape, *flags, ranks=ranks)
        if found is None:
            return
        self.write({"name": f"prefill {label}", "value": round(found["value"], 1),
                    "unit": "tokens/s", "ratio": round(found["ratio"], 4), "command": command,
                    "baseline": f"bf16 matrix rate {found['flops_limit'] / 1e12:.0f} TFLOP/s"}, ranks)

    def throughput(self, shape, batch, prompt, tokens, ranks=1, *flags):
        """Output tokens/s against the bound (weights + mean KV bytes of a step) / read bandwidth."""
        found, command = self.bench("decode", shape, "--batch", batch, "--prompt-tokens", prompt,
                                    "--tokens", tokens, "--repeats", 1, "--profile", "throughput",
                                    *flags, ranks=ranks)
        if found is None:
            return
        kv = batch * (prompt + tokens / 2) * kv_bytes_per_token(shape)
        bound = batch * found["read_bandwidth"] / (found["weight_bytes_per_step"] + kv)
        self.write({"name": f"throughput {shape}, {batch} x ({prompt} in, {tokens} out)",
                    "value": round(found["value"], 1), "unit": "tokens/s",
                    "ratio": round(found["value"] / bound, 4), "command": command,
                    "baseline": f"bound by bytes {bound:.0f} tokens/s"}, ranks)

    def kernel_benches(self):
        for program in sorted(Path(self.args.benches).glob("cuda_*_bench")):
            done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
            for text in done.stdout.splitlines():
                if not text.startswith("{"):
                    continue
                line = json.loads(text)
                if "ratio" not in line:
                    continue
                line["command"] = f"bench/{program.name}"
                self.write(line)

    def run(self):
        repeats = 3 if self.args.quick else 5
        one = ["--prompt-tokens", 1000, "--tokens", 256, "--repeats", repeats]
        self.decode("llama-3.1-8b, 1 stream, context 1k", "llama-3.1-8b", *one)
        self.decode("llama-3.2-1b, 1 stream, context 1k", "llama-3.2-1b", *one)
        self.decode("qwen3-0.6b, 1 stream, context 1k", "qwen3-0.6b", *one)
        self.prefill("llama-3.1-8b, 8k", "llama-3.1-8b", "--prompt-tokens", 8192, "--repeats",
                     repeats, "--profile", "throughput")
        self.throughput("llama-3.1-8b", 16, 128, 256 if self.args.quick else 1024)
        self.throughput("llama-3.1-8b", 256, 128, 256 if self.args.quick else 1024)
        for ranks in (2, 4):
            if len(self.gpus) < ranks:
                break
            self.decode(f"llama-3.1-8b, 1 stream, tensor={ranks}", "llama-3.1-8b", *one, "--layout",
                        f"tensor={ranks}", ranks=ranks)
        if len(self.gpus) >= 2:
            self.decode("llama-3.1-8b, 2 streams, pipeline=2", "llama-3.1-8b", *one, "--batch", 2,
                        "--layout", "pipeline=2", ranks=2)
        if self.args.benches:
            self.kernel_benches()


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1])
    parser.add_argument("trireme")
    parser.add_argument("out")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--benches")
    Suite(parser.parse_args()).run()


if __name__ == "__main__":
    main()
