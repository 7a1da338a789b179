#!/usr/bin/env python3
"""Measures decode and prefill on this machine's CPU and writes one JSON object a line.

usage: cpu_suite.py TRIREME OUT.jsonl [--quick] [--commit ID] [--threads N] [--formats NAME,…]

Makes random-weight models in a temporary folder (3 GB; bench/make_model.py, needs numpy). Every
figure is a ratio within this run: to the read bandwidth or arithmetic that `trireme bench` measures
beside it, or of two layouts on the same model, run in turn.
"""
import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from make_model import FORMATS

HERE = Path(__file__).resolve().parent


def device():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


class Suite:
    def __init__(self, args):
        self.args = args
        self.lines = []

    def bench(self, what, model, *flags, ranks=0):
        """One `trireme bench` run; gives its JSON and the command as a reader would type it."""
        command = [self.args.trireme, "bench", what, "--model", str(model), "--json", *map(str, flags)]
        if ranks:
            command = [str(HERE.parent / "launch/mpirun"), "-n", str(ranks), *command]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        shown = ["trireme" if part == self.args.trireme else Path(part).name
                 if part.startswith("/") else part for part in command]
        return json.loads(done.stdout), " ".join(shown)

    def record(self, name, value, unit, baseline, ratio, command):
        line = {"name": name, "value": value, "unit": unit, "baseline": baseline,
                "ratio": round(ratio, 4), "device": device(), "commit": self.args.commit,
                "date": datetime.date.today().isoformat(), "command": command}
        self.lines.append(line)
        print(f"{name:48} {value:14.4g} {unit:10} ratio {ratio:.3f}", flush=True)

    def decode(self, label, model, *flags, ranks=0):
        found, command = self.bench("decode", model, *flags, ranks=ranks)
        self.record(f"decode {label}", found["value"], "tokens/s",
                    f"read bandwidth {found['read_bandwidth'] / 1e9:.1f} GB/s", found["ratio"], command)

    def prefill(self, label, model, *flags, ranks=0):
        found, command = self.bench("prefill", model, *flags, ranks=ranks)
        self.record(f"prefill {label}", found["value"], "tokens/s",
                    f"{found['flops_limit_of']} {found['flops_limit'] / 1e9:.0f} G/s", found["ratio"],
                    command)

    def layouts(self, label, model, rounds, *flags):
        """tensor=2 with one thread each over one process with two threads, run in turn."""
        pairs = []
        for _ in range(rounds):
            one, _ = self.bench("decode", model, "--threads", 2, *flags)
            two, command = self.bench("decode", model, "--threads", 1, "--layout", "tensor=2", *flags,
                                      ranks=2)
            pairs.append((two["value"] / one["value"], two["value"], one["value"]))
        ratio = statistics.median(pair[0] for pair in pairs)
        self.record(f"decode tensor=2 over 2 threads, {label}",
                    statistics.median(pair[1] for pair in pairs), "tokens/s",
                    f"{statistics.median(pair[2] for pair in pairs):.1f} tokens/s with 2 threads",
                    ratio, command)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trireme")
    parser.add_argument("out")
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer rounds")
    parser.add_argument("--commit", default="")
    parser.add_argument("--threads", type=int, default=2, help="for the single-process figures")
    parser.add_argument("--formats", default=",".join(name for name in FORMATS if name != "f32"))
    args = parser.parse_args()
    if not args.commit:
        args.commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"],
                                     capture_output=True, text=True).stdout.strip()
    suite = Suite(args)
    layers = 6 if args.quick else 22
    rounds = 3 if args.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        for form in args.formats.split(","):
            model = Path(folder) / f"{form}.gguf"
            subprocess.run([sys.executable, HERE / "make_model.py", model, "--format", form,
                            "--layers", str(layers)], check=True)
            suite.decode(f"{form}, {args.threads} threads", model, "--threads", args.threads)
            suite.prefill(f"{form}, {args.threads} threads", model, "--threads", args.threads)
            if form in ("bf16", "q4_1"):
                suite.layouts(form, model, rounds)
                suite.decode(f"{form}, tensor=2", model, "--threads", 1, "--layout", "tensor=2", ranks=2)
                suite.decode(f"{form}, pipeline=2, batch 8", model, "--threads", 1, "--batch", 8,
                             "--layout", "pipeline=2", ranks=2)
            model.unlink()
    Path(args.out).write_text("".join(json.dumps(line) + "\n" for line in suite.lines))


if __name__ == "__main__":
    main()
