"""The server as a process under mpirun: same tokens as generate, signals, ports, idle ranks."""
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from program import MODELS, SMOLLM2, TRIREME, Server, call, call_json, command, index

TICKS = os.sysconf("SC_CLK_TCK")


def ranks_of(server):
    """Process ids of the server's ranks, rank 0 first: the descendants that are the program itself."""
    found, queue = [], [server.process.pid]
    while queue:
        pid = queue.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            queue += [int(child) for child in (task / "children").read_text().split()]
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if arguments[0].endswith(b"trireme"):
            found.append(pid)
    return sorted(found, key=rank_of)


def rank_of(pid):
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
            return int(entry.split(b"=")[1])
    return 0


def alive(pid):
    """Whether the process runs; one that nobody has reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_gone(pids, seconds=5):
    """The pids that still run after at most `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def chat(server, *arguments):
    return call_json("chat", "--server", server.address, "--raw", "--wait", 60, *arguments)


@unittest.skipUnless(SMOLLM2, "TRIREME_SMOLLM2 does not name the model")
class RealServer(unittest.TestCase):
    def test_four_ranks_answer_as_generate_does_and_idle_ranks_sleep(self):
        prompt = "Rowing a trireme takes"
        alone = call_json("generate", "--model", SMOLLM2, "--layout", "tensor=2,pipeline=2",
                          "--prompt", prompt, "--max-tokens", 32, ranks=4)
        with Server(SMOLLM2, "--layout", "tensor=2,pipeline=2", "--kv-memory", "64MiB",
                    ranks=4) as server:
            first = chat(server, "--prompt", prompt, "--max-tokens", 32)
            self.assertEqual(first["token_ids"], alone["token_ids"])
            self.assertEqual(first["text"], alone["text"])

            # Sampling flags mean the same over the wire.
            for flags in (["--banned-tokens", first["token_ids"][0], "--top-k", 5, "--seed", 3,
                           "--temperature", 0.9, "--min-p", 0.01],
                          ["--logit-bias", "30:1000", "--stop-id", 30],
                          ["--repetition-penalty", 1.3, "--presence-penalty", 0.5,
                           "--frequency-penalty", 0.5, "--stop", "e", "--include-stop"]):
                told = chat(server, "--prompt", prompt, "--max-tokens", 32, *flags)
                same = call_json("generate", "--model", SMOLLM2, "--layout", "tensor=2,pipeline=2",
                                 "--prompt", prompt, "--max-tokens", 32, *flags, ranks=4)
                self.assertEqual([told[key] for key in ("token_ids", "text", "finish_reason")],
                                 [same[key] for key in ("token_ids", "text", "finish_reason")])
                self.assertNotEqual(told["token_ids"], first["token_ids"])

            # A second time the prompt's full blocks come from the prefix cache.
            long = "A story. " * 20
            chat(server, "--prompt", long, "--max-tokens", 4)
            again = chat(server, "--prompt", long, "--max-tokens", 4)
            self.assertGreaterEqual(again["cached_tokens"], 16)

            ranks = ranks_of(server)
            self.assertEqual(len(ranks), 4)
            time.sleep(1)
            before = [cpu_seconds(pid) for pid in ranks]
            time.sleep(5)
            shares = [(cpu_seconds(pid) - start) / 5 for pid, start in zip(ranks, before)]
            self.assertLess(max(shares), 0.02, shares)

            # And they wake: the next request is answered.
            self.assertEqual(chat(server, "--prompt", prompt, "--max-tokens", 32)["token_ids"],
                             alone["token_ids"])
        self.assertEqual(wait_gone(ranks), [])

    def test_a_conversation(self):
        with Server(SMOLLM2, "--kv-memory", "64MiB", "--max-running", 1) as server:
            talk = [TRIREME, "chat", "--server", server.address, "--wait", "60"]
            done = subprocess.run([*talk, "--max-tokens", "32"], capture_output=True, timeout=120,
                                  input=b"My name is Ada. Say hello.\n\nWhat is my name?\n")
            self.assertEqual(done.returncode, 0, done.stderr)
            told = re.findall(rb"\((\d+) prompt tokens, (\d+) cached", done.stderr)
            self.assertEqual(len(told), 2, done.stderr)
            # The second question brings the first one and its answer along.
            self.assertGreater(int(told[1][0]), int(told[0][0]) + 16)
            self.assertGreaterEqual(int(told[1][1]), 32)

            # Ctrl-C ends an answer, also one that waits for its turn, and not the talk.
            with subprocess.Popen([*talk, "--ignore-eos", "--max-tokens", "2000"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as first:
                first.stdin.write(b"Tell me a long story.\n")
                first.stdin.flush()
                first.stdout.read(40)
                # The first answer has begun: this one waits behind it.
                with subprocess.Popen([*talk, "--prompt", "Hello"], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE) as second:
                    time.sleep(1)
                    second.send_signal(signal.SIGINT)
                    self.assertEqual(second.wait(10), 1)
                self.assertIsNone(first.poll())
                for question in (b"And now?\n", None):
                    first.send_signal(signal.SIGINT)
                    told = b""
                    while b"aborted" not in told:
                        line = first.stderr.readline()
                        self.assertTrue(line, told)
                        told += line
                    if question is None:
                        break
                    # What was said is in the pipe by now; what comes next is the new answer's.
                    os.set_blocking(first.stdout.fileno(), False)
                    while first.stdout.read():
                        pass
                    os.set_blocking(first.stdout.fileno(), True)
                    first.stdin.write(question)
                    first.stdin.flush()
                    first.stdout.read(20)
                first.stdin.close()
                self.assertEqual(first.wait(30), 0)

    def test_bench_serve_reports_and_plots(self):
        with Server(SMOLLM2, "--kv-memory", "64MiB") as server, \
                tempfile.TemporaryDirectory() as folder:
            report, plot = Path(folder) / "report.json", Path(folder) / "plot.svg"
            answer = call_json("bench", "serve", "--server", server.address, "--requests", 8,
                               "--warmup", 1, "--concurrency", 4, "--prompt-tokens", "8-24",
                               "--output-tokens", "4-12", "--output", report, "--plot", plot)
            self.assertEqual(json.loads(report.read_text()), answer)
            self.assertIn("<svg", plot.read_text())


class SmallServer(unittest.TestCase):
    def setUp(self):
        self.model = MODELS / index()["llama3"]["path"]

    def test_signals_end_it_in_good_order(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Server(self.model) as server:
                self.assertEqual(server.stop(number), 0, server.text())

    def test_rank_0_ends_a_world_in_good_order(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Server(self.model, ranks=2) as server:
                self.assertIn("layout tensor=2", server.text())  # it was not asked for one
                ranks = ranks_of(server)
                os.kill(ranks[0], number)
                self.assertEqual(server.process.wait(30), 0, server.text())
                self.assertIn("ending", server.text())
                self.assertEqual(wait_gone(ranks), [])

    def test_a_signal_to_the_launcher_ends_every_rank(self):
        with Server(self.model, ranks=2) as server:
            ranks = ranks_of(server)
            server.stop(signal.SIGTERM)  # mpirun itself then ends with 1
            self.assertEqual(wait_gone(ranks), [])

    def test_a_port_file_that_cannot_be_written(self):
        for ranks in (0, 2):
            done = call("serve", "--model", self.model, "--listen", "127.0.0.1:0", "--port-file",
                        "/nowhere/port", ranks=ranks)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("/nowhere/port", done.stderr.decode())
            self.assertNotIn("weights", done.stderr.decode())  # before anything is loaded

    def test_two_servers_on_one_port(self):
        with Server(self.model) as server:
            for ranks in (0, 2):
                done = call("serve", "--model", self.model, "--listen", server.address, ranks=ranks)
                self.assertEqual(done.returncode, 1)
                self.assertIn(server.address.split(":")[1], done.stderr.decode())

    def test_bad_listen_addresses(self):
        for address in ("nonsense", "127.0.0.1:99999", "127.0.0.1:-1"):
            done = call("serve", "--model", self.model, "--listen", address)
            self.assertEqual(done.returncode, 2, done.stderr)

    def test_a_killed_rank_takes_the_job_down(self):
        with Server(self.model, ranks=2) as server:
            ranks = ranks_of(server)
            os.kill(ranks[1], signal.SIGKILL)
            self.assertNotEqual(server.process.wait(30), 0)
            self.assertIn("rank", server.text())
            self.assertEqual(wait_gone(ranks), [])

    def test_no_server_to_talk_to(self):
        done = subprocess.run(command(["chat", "--server", "127.0.0.1:1", "--wait", "0.2", "--prompt",
                                       "x"]), capture_output=True, timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertIn("127.0.0.1:1", done.stderr.decode())


if __name__ == "__main__":
    unittest.main()
