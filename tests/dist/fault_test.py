"""One rank of three goes wrong inside a step: the others name it and end, and nothing is left.

TRIREME_FAULT_ROUNDS=N repeats every case (2 by default), TRIREME_FAULT_CASES=kill,skip takes some;
TRIREME_FAULT_DEVICE=cuda runs on GPUs with TRIREME_FAULT_RANKS=2 (3 by default). Prints for each case
how long the world lived on after the fault.
"""
import os
import re
import shutil
import subprocess
import sys
import time
import unittest
from pathlib import Path

ROOT = Path(os.environ["TRIREME_ROOT"])
PROGRAM = os.environ["FAULT_PROGRAM"]
ROUNDS = int(os.environ.get("TRIREME_FAULT_ROUNDS", "2"))
CHOSEN = os.environ.get("TRIREME_FAULT_CASES", "")
DEVICE = os.environ.get("TRIREME_FAULT_DEVICE", "cpu")
RANKS = int(os.environ.get("TRIREME_FAULT_RANKS", "3"))
STEP_LIMIT = 2.0  # s, as the program sets it
DOWN_LIMIT = 5.0  # s, from when a fault is noticed until the last process has gone
# On a device sums are not made on the host's links.
LINK = "tp" if DEVICE == "cpu" else "control"
LAST = RANKS - 1
TENSOR, PIPELINE = f"tensor={RANKS}", f"pipeline={RANKS}"


def place(rank, stage, tensor):
    return rf"rank {rank} on \S+ \(stage {stage}, tensor rank {tensor}\)"


# name: (fault, rank, layout, link, s until it may be noticed, what the first line says)
CASES = {
    "kill": ("kill", 1, TENSOR, LINK, 0, place(1, 0, 1) + " is gone"),
    "kill_in_a_pipeline": ("kill", 1, PIPELINE, "data" if DEVICE == "cpu" else "control", 0,
                           place(1, 1, 0) + " is gone"),
    "stop": ("stop", 1, TENSOR, LINK, 2 * STEP_LIMIT, place(1, 0, 1) + " has not answered"),
    "stop_rank_0": ("stop", 0, TENSOR, LINK, 2 * STEP_LIMIT, place(0, 0, 0) + " has not answered"),
    # On a device it is the next order that the rank does not take: others may be in that step.
    "hang": ("hang", 1, TENSOR, LINK, 2 * STEP_LIMIT,
             place(1, 0, 1) + f" is stuck {'in' if DEVICE == 'cpu' else 'before'} step"),
    "hang_rank_0": ("hang", 0, TENSOR, LINK, 2 * STEP_LIMIT, place(0, 0, 0) + " is "
                    + ("stuck in step" if DEVICE == "cpu" else "in no operation")),
    # Its device has done the step, and the result is on its way to nobody.
    "hang_in_the_last_stage": ("hang", LAST, PIPELINE, "data" if DEVICE == "cpu" else "control",
                               2 * STEP_LIMIT, place(LAST, LAST, 0)
                               + (" is stuck in" if DEVICE == "cpu" else " has left") + " step"),
    "plan": ("plan", LAST, TENSOR, "control", 0,
             place(LAST, 0, LAST) + r" step \d+: the hash of its plan is \w{16}, that of " +
             place(0, 0, 0) + r" is \w{16}"),
    "other_plan": ("other_plan", 1, TENSOR, "control", 0,
                   place(1, 0, 1) + r" step \d+: the hash of its plan is \w{16}, that of " +
                   place(0, 0, 0) + r" is \w{16}"),
    "other_plan_in_a_pipeline": ("other_plan", 1, PIPELINE, "control", STEP_LIMIT / 4,
                                 place(1, 1, 0) + r" step \d+: the hash of its plan is \w{16}, "
                                 "that of " + place(0, 0, 0) + r" is \w{16}"),
    "throw": ("throw", 1, TENSOR, LINK, 0, place(1, 0, 1) + r" step \d+: the floor is wet"),
}
if DEVICE == "cuda":
    # NCCL sums what comes. Where sizes meet that differ it waits; else the watchdogs compare how
    # many each device was given.
    CASES["skip"] = ("skip", 1, TENSOR, "device_tp", 2 * STEP_LIMIT,
                     "mismatch: " + place(1, 0, 1) + r" step \d+: .* where " + place(0, 0, 0) + "|" +
                     place(1, 0, 1) + r" step \d+: its device was given \d+ collectives before, "
                     "that of " + place(0, 0, 0) + r" \d+")
else:
    CASES["skip"] = ("skip", 1, TENSOR, "tp", 0,
                     "mismatch: " + place(1, 0, 1) + r" step \d+: .* where " + place(0, 0, 0) +
                     " and " + place(2, 0, 2))
    # Over messages ranks in different collectives wait, until a step's limit.
    CASES["skip_between_nodes"] = (*CASES["skip"][:4], 2 * STEP_LIMIT, CASES["skip"][5])


def alive(process):
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_gone(processes, limit=10):
    until = time.monotonic() + limit
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.01)
    return [process for process in processes if alive(process)]


class Faults(unittest.TestCase):
    def run_case(self, name):
        memory = gpu_memory()
        fault, rank, layout, link, notice, words = CASES[name]
        program = [PROGRAM, fault, str(rank), layout, link, DEVICE]
        line = ["-n", str(RANKS), *program]
        if name.endswith("_between_nodes"):
            ranks = (["-n", "1", "env", f"TRIREME_NODE={node}", *program] for node in range(RANKS))
            line = [word for one in ranks for word in [*one, ":"]][:-1]
        world = subprocess.Popen([str(ROOT / "launch/mpirun"), *line], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE)
        try:
            text = world.communicate(timeout=60)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            world.kill()
            self.fail(f"{name}: hangs: {world.communicate()[1].decode(errors='replace')}")
        processes = [int(one) for one in re.findall(r"^process (\d+) job", text, re.M)]
        job = re.search(r" job (\d+)", text)
        left = wait_gone(processes)
        begun = re.search(r"^fault at ([\d.]+)", text, re.M)
        self.assertTrue(begun, text)
        took = time.monotonic() - float(begun[1])
        self.assertEqual(len(processes), RANKS, text)
        self.assertEqual(left, [], text)
        told = [line for line in text.splitlines() if line.startswith("trireme: ")]
        self.assertTrue(told, text)
        self.assertRegex(told[0], words, text)
        if fault != "kill":  # else mpirun's exit code tells of the one that was killed
            self.assertEqual(world.returncode, 3, text)
        names = ([f"trireme-{process}-" for process in processes] +
                 [f".{int(job[1]):x}."])  # of Open MPI
        self.assertEqual([entry for entry in os.listdir("/dev/shm")
                          if any(one in entry for one in names)], [], text)
        self.assertLess(took, notice + DOWN_LIMIT, text)
        self.assertEqual(wait_freed(memory), [], text)
        return took, told[0]


def add_test(name):
    def test(self):
        rounds = [self.run_case(name) for _ in range(ROUNDS)]
        times = sorted(took for took, _ in rounds)
        print(f"{name}: {ROUNDS} rounds, down after {times[0]:.1f} to {times[-1]:.1f} s, "
              f"median {times[len(times) // 2]:.1f}: {rounds[0][1]}", file=sys.stderr, flush=True)
    setattr(Faults, "test_" + name, test)


for case in CASES:
    if not CHOSEN or case in CHOSEN.split(","):
        add_test(case)

def gpu_memory():
    """MiB in use on each GPU; nothing without --device cuda."""
    if DEVICE != "cuda":
        return []
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.check_output(query, text=True).split()]


def wait_freed(before, limit=10.0):
    """GPUs on which more is in use than before, after a while: (number, MiB before, MiB now)."""
    until = time.monotonic() + limit
    while True:
        now = gpu_memory()
        left = [(i, was, used) for i, (was, used) in enumerate(zip(before, now)) if used > was + 16]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def gpus():
    if not shutil.which("nvidia-smi"):
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


if __name__ == "__main__":
    if DEVICE == "cuda" and gpus() < RANKS:
        print(f"skipped: needs {RANKS} GPUs")
        sys.exit(77)
    unittest.main()
