#!/usr/bin/env python3
"""Checks which folder may include which, and where foreign headers may appear.

  base <- {kernels, parallel} <- runtime/model <- runtime <- {clients, launch}

kernels and parallel never include each other. The scheduler's files include only base and each
other. gRPC stays in the coordinator and the clients, MPI in parallel/mpi* and parallel/world*, NCCL
in parallel/nccl*, CUDA in kernels/cuda, base/ and parallel/nccl*.

usage: check_includes.py ROOT | --self-test
"""
import re
import sys
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)
FOLDERS = ("base", "kernels", "parallel", "runtime", "clients", "launch")

MAY_INCLUDE = {
    "base": {"base"},
    "kernels": {"base", "kernels"},
    "parallel": {"base", "parallel"},
    "runtime/model": {"base", "kernels", "parallel", "runtime/model"},
    "runtime": {"base", "kernels", "parallel", "runtime/model", "runtime"},
    "clients": {"base", "clients"},
    "launch": {"base", "kernels", "parallel", "runtime/model", "runtime", "clients", "launch"},
}

# Pure host logic: tested with no GPU, no MPI and no model.
SCHEDULER = re.compile(
    r"^runtime/(scheduler|kv_cache_pool|prefix_|sequence|step_plan|sampling_params|profiles)")

# A foreign header (by prefix) and the only files that may include it.
FOREIGN = {
    r"(grpc|grpcpp)/|.*\.grpc\.pb\.h": r"^(runtime/coordinator|clients/)",
    r"google/protobuf|trireme/v1/": r"^(runtime/coordinator|clients/|launch/)",
    r"mpi\.h": r"^parallel/(mpi|world)",
    r"nccl": r"^parallel/nccl",
    r"cuda|cublas": r"^(kernels/cuda|base/|parallel/nccl)",
    r"CLI/": r"^launch/",
}


def folder_of(path):
    if path.startswith("runtime/model/"):
        return "runtime/model"
    head = path.split("/", 1)[0]
    return head if head in FOLDERS else None


def violations(path, text):
    """Messages for one file; `path` is relative to the root, with forward slashes."""
    own = folder_of(path)
    for included in INCLUDE.findall(text):
        target = folder_of(included) if "/" in included else None
        if target and target not in MAY_INCLUDE[own]:
            yield f"{path}: {own} must not include {included}"
        elif target and SCHEDULER.match(path) and target != "base" and not SCHEDULER.match(included):
            yield f"{path}: the scheduler's files must not include {included}"
        for header, allowed in FOREIGN.items():
            if re.match(header, included) and not re.match(allowed, path):
                yield f"{path}: {included} may be included only by {allowed}"


def check(root):
    found, files = [], 0
    for folder in FOLDERS:
        for path in sorted(Path(root, folder).rglob("*")):
            if path.suffix in {".h", ".cc", ".cu", ".cuh"}:
                files += 1
                found += violations(path.relative_to(root).as_posix(), path.read_text())
    return found, files


def self_test():
    bad = [
        ("base/a.h", '#include "kernels/quant.h"'),
        ("kernels/cpu/a.cc", '#include "parallel/layout.h"'),
        ("parallel/layout.cc", '#include "kernels/quant.h"'),
        ("runtime/model/a.cc", '#include "runtime/engine.h"'),
        ("runtime/scheduler.cc", '#include "kernels/backend.h"'),
        ("runtime/engine.cc", "#include <grpcpp/grpcpp.h>"),
        ("runtime/engine.cc", "#include <mpi.h>"),
        ("launch/command_chat.cc", '#include "trireme/v1/trireme.grpc.pb.h"'),
        ("parallel/layout.cc", "#include <mpi.h>"),
        ("runtime/engine.cc", '#include "launch/command.h"'),
    ]
    good = [
        ("parallel/mpi_communicator.cc", "#include <mpi.h>"),
        ("runtime/coordinator.cc", "#include <grpcpp/grpcpp.h>"),
        ("runtime/scheduler.cc", '#include "runtime/sequence.h"\n#include <vector>'),
    ]
    for path, text in bad:
        assert list(violations(path, text)), (path, text)
    for path, text in good:
        assert not list(violations(path, text)), (path, text)


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return 0
    found, files = check(sys.argv[1])
    print("\n".join(found) or f"{files} files keep the rules")
    return 1 if found or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
