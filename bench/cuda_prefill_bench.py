#!/usr/bin/env python3
"""Prefill attention beside PyTorch's SDPA, in one run: JSON lines, ratio = ours / baseline.

    bench/cuda_prefill_bench.py BINARY [PART]    (PART of a case's name; default all)
"""
import json
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

Q_HEADS, KV_HEADS = 32, 8
TIMED, TIMED_MS, WARM_MS = 15, 8.0, 120.0


def median_ms(call):
    """Of one call on a warm chip; a graph of several hides what the host needs for a launch."""
    def elapsed(run, times):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
        return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))[times // 2]

    call()
    calls = max(1, int(TIMED_MS / elapsed(call, 3)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    elapsed(graph.replay, int(WARM_MS / TIMED_MS))
    return elapsed(graph.replay, TIMED) / calls


def sdpa_tflops(backend, rows, tokens, dims):
    """The better of grouped and of repeated KV heads; None where the backend refuses both."""
    def heads(count):
        return torch.randn(rows, tokens, count, dims, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    q, best = heads(Q_HEADS), None
    for kv_heads, grouped in ((KV_HEADS, True), (Q_HEADS, False)):
        k, v = heads(kv_heads), heads(kv_heads)
        try:
            with sdpa_kernel(backend):
                ms = median_ms(lambda: sdpa(q, k, v, is_causal=True, enable_gqa=grouped))
        except RuntimeError:
            continue
        rate = 2.0 * rows * tokens * tokens * dims * Q_HEADS / ms * 1e-9
        best = rate if best is None else max(best, rate)
    return best


def main():
    device = torch.cuda.get_device_name()
    baselines = {}
    for rows, tokens, dims in ((1, 1024, 128), (1, 4096, 128), (1, 16384, 128), (16, 1024, 128),
                               (1, 1024, 64), (1, 4096, 64), (1, 16384, 64),
                               (1, 4096, 96), (1, 4096, 256), (1, 16384, 256)):
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            rate = sdpa_tflops(backend, rows, tokens, dims)
            if rate is None:
                continue
            baselines.setdefault((rows, tokens, dims), {})[name] = rate
            print(json.dumps({"name": f"sdpa_{name}_d{dims}_rows{rows}_tokens{tokens}", "value": round(rate, 1),
                              "unit": "TFLOP/s", "device": device}), flush=True)
    output = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout
    for line in output.splitlines():
        name, _, rate = line.split()
        fields = dict((key, int(value)) for key in ("rows", "tokens", "pos", "d")
                      for part in name.split("_")
                      if part.startswith(key) and (value := part[len(key):]).isdigit())
        result = {"name": name, "value": float(rate), "unit": "TFLOP/s"}
        found = baselines.get((fields["rows"], fields["tokens"], fields["d"])) if fields["pos"] == 0 else None
        if found:
            best = max(found, key=found.get)
            result |= {"baseline": round(found[best], 1), "baseline_name": f"sdpa_{best}", "ratio": round(float(rate) / found[best], 3)}
        print(json.dumps(result | {"device": device}), flush=True)


if __name__ == "__main__":
    main()
