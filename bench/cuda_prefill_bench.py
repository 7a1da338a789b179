#!/usr/bin/env python3
"""Prefill attention beside PyTorch's SDPA, in one run: JSON lines, ratio = ours / baseline.

    bench/cuda_prefill_bench.py BINARY [KERNEL]    (KERNEL: hopper_ or mma_; default both)
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


def ours(binary, case):
    """Name and TFLOP/s of each kernel that the program has for the case."""
    output = subprocess.run([binary, case], check=True, capture_output=True, text=True).stdout
    return [(line.split()[0], float(line.split()[2])) for line in output.splitlines()]


def main():
    binary, part = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    device = torch.cuda.get_device_name()
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    cases = [(dims, 64, 1, 0, tokens) for dims in (128, 64, 256) for tokens in (1024, 4096, 16384)]
    cases += [(96, 64, 1, 0, 4096), (128, 16, 1, 0, 4096), (128, 32, 1, 0, 16384),
              (128, 64, 16, 0, 1024), (128, 64, 1, 14336, 2048)]
    for dims, block, rows, position, tokens in cases:
        case = f"d{dims}_b{block}_rows{rows}_pos{position}_tokens{tokens}"
        # The baseline before and after, since a chip at its power limit drifts.
        before = {} if position else {name: sdpa_tflops(backend, rows, tokens, dims)
                                      for name, backend in backends.items()}
        before = {name: rate for name, rate in before.items() if rate is not None}
        measured = ours(binary, part + case)
        best = max(before, key=before.get, default=None)
        baseline = best and max(before[best], sdpa_tflops(backends[best], rows, tokens, dims))
        for name, rate in measured:
            result = {"name": name, "value": rate, "unit": "TFLOP/s"}
            if best:
                result |= {"baseline": round(baseline, 1), "baseline_name": f"sdpa_{best}",
                           "ratio": round(rate / baseline, 3)}
            print(json.dumps(result | {"device": device}), flush=True)
        for name, rate in before.items():
            print(json.dumps({"name": f"sdpa_{name}_{case}", "value": round(rate, 1), "unit": "TFLOP/s",
                              "device": device}), flush=True)


if __name__ == "__main__":
    main()
