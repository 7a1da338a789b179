#!/usr/bin/env python3
"""Holds full pipelines against their bound and writes one JSON object a line.

usage: pipeline_suite.py TRIREME OUT.jsonl [--device cpu|cuda] [--stages 2,3] [--rounds N] [--quick]
                         [--sequences N] [--shape NAME] [--commit ID] [--plots DIR]

Every figure is `trireme bench overlap`'s: decode tokens/s with enough sequences, over the rows of a
micro-batch / the time of the slowest stage run alone, in the same run; the median of the rounds.
With and without look-ahead, in turn.

On CPU: a core per rank or more, or ranks take each other's; makes a random-weight model (bench/
make_model.py, needs numpy; 0.3 GB) and runs one thread a rank, each rank on cores of its own. On
GPUs: random weights in a shape of bench/shapes, as many GPUs as stages; with four also tensor=2 x
pipeline=2 beside tensor=4.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def device(kind):
    if kind == "cuda":
        found = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                               capture_output=True, text=True, check=True).stdout.strip().split("\n")
        return found[0], len(found)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip(), os.cpu_count()
    return platform.machine(), os.cpu_count()


class Suite:
    def __init__(self, args):
        self.args = args
        self.device, self.places = device(args.device)
        self.out = open(args.out, "w")

    def overlap(self, model, layout, ranks, look_ahead, plot=None):
        args = self.args
        command = [str(HERE.parent / "launch/mpirun"), "-n", str(ranks), args.trireme, "bench",
                   "overlap", "--model", str(model), "--layout", layout, "--sequences",
                   str(args.sequences or 16 * ranks), "--prompt-tokens", "128", "--tokens",
                   "64" if args.quick else "160", "--look-ahead", look_ahead, "--json"]
        if args.device == "cpu":
            command += ["--device", "cpu", "--threads", "1"]
        else:
            command += ["--device", "cuda", "--load-format", "dummy"]
        if plot:
            command += ["--plot", str(plot)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900,
                              env={**os.environ, "TRIREME_BIND": os.environ.get("TRIREME_BIND", "1")})
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        shown = ["trireme" if part == args.trireme else Path(part).name if part.startswith("/")
                 else part for part in command]
        return json.loads(done.stdout), " ".join(shown)

    def measure(self, label, model, layout, ranks):
        if self.places < ranks:
            print(f"{label}: {ranks} places are needed, there are {self.places}", file=sys.stderr)
            return
        found = {"off": [], "on": []}
        for _ in range(self.args.rounds):
            for look_ahead, runs in found.items():
                plot = None
                if self.args.plots and not runs:
                    plot = Path(self.args.plots) / f"{layout.replace(',', '_')}_{look_ahead}.svg"
                runs.append(self.overlap(model, layout, ranks, look_ahead, plot))
        for look_ahead, runs in found.items():
            ordered = sorted(runs, key=lambda run: run[0]["ratio"])
            middle, command = ordered[len(ordered) // 2]
            ratios = [run[0]["ratio"] for run in ordered]
            line = {"name": f"pipeline {label}, look-ahead {look_ahead}",
                    "value": round(middle["value"], 2), "unit": "tokens/s",
                    "baseline": round(middle["bound"], 2),
                    "ratio": round(statistics.median(ratios), 4),
                    "ratios": [round(ratio, 4) for ratio in ratios], "layout": middle["layout"],
                    "rows": middle["rows_per_step"],
                    "bubbles": [round(stage["bubble"], 4) for stage in middle["stages"]],
                    "exposed_ms": [round(stage["communication_exposed_ms"], 4)
                                   for stage in middle["stages"]],
                    "alone_ms": [round(stage["alone_ms"], 4) for stage in middle["stages"]],
                    "together_ms": [round(stage["together_ms"], 4) for stage in middle["stages"]],
                    "device": f"{self.places} x {self.device}", "commit": self.args.commit,
                    "date": datetime.date.today().isoformat(), "command": command}
            self.out.write(json.dumps(line) + "\n")
            self.out.flush()
            print(f"{line['name']:44} {line['value']:10.1f} of {line['baseline']:10.1f} tokens/s: "
                  f"{line['ratio']:.3f} {line['ratios']}, bubbles {line['bubbles']}", flush=True)

    def run(self):
        stages = [int(number) for number in self.args.stages.split(",")]
        if self.args.device == "cuda":
            model = HERE / "shapes" / self.args.shape
            for count in stages:
                self.measure(f"{self.args.shape}, {count} stages", model, f"pipeline={count}", count)
            if self.places >= 4:
                for layout in ("tensor=2,pipeline=2", "tensor=4"):
                    self.measure(f"{self.args.shape}, {layout}", model, layout, 4)
            return
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.gguf"
            subprocess.run([sys.executable, HERE / "make_model.py", model, "--format", "q4_0",
                            "--layers", "12", "--vocab", "8192"], check=True)
            for count in stages:
                self.measure(f"q4_0, 12 layers, {count} stages", model, f"pipeline={count}", count)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1])
    parser.add_argument("trireme")
    parser.add_argument("out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--stages", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=0, help="0: 16 a stage")
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--commit", default="")
    parser.add_argument("--plots", help="a folder for SVG plots")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.trireme = str(Path(args.trireme).resolve())
    args.stages = args.stages or ("2,4" if args.device == "cuda" else "2,3")
    if not args.commit:
        args.commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"],
                                     capture_output=True, text=True).stdout.strip()
    Suite(args).run()


if __name__ == "__main__":
    main()
