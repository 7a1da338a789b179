"""How the end-to-end tests run the program: paths, calls, servers on free loopback ports."""
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(os.environ["TRIREME_ROOT"])
TRIREME = os.environ["TRIREME"]
MODELS = ROOT / "tests/fixtures/models"
# The real model: named by TRIREME_SMOLLM2, or where launch/fetch_model puts it; "" if it is not there.
FETCHED = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = os.environ.get("TRIREME_SMOLLM2") or (str(FETCHED) if FETCHED.exists() else "")


def command(arguments, ranks=0):
    launcher = [str(ROOT / "launch/mpirun"), "-n", str(ranks)] if ranks else []
    return [*launcher, TRIREME, *map(str, arguments)]


def call(*arguments, ranks=0, stdin=b"", timeout=120, env=None):
    """Runs the program to its end; gives the CompletedProcess with bytes."""
    return subprocess.run(command(arguments, ranks), input=stdin, capture_output=True,
                          timeout=timeout, env={**os.environ, **(env or {})})


def call_json(*arguments, **options):
    done = call(*arguments, "--json", **options)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr.decode()}")
    return json.loads(done.stdout)


def expected(entry):
    """Expected values of one entry of the fixtures' index."""
    return json.loads((MODELS / (entry["expected"] + ".json")).read_text())


def index():
    return {entry["name"]: entry for entry in json.loads((MODELS / "index.json").read_text())}


def token_file(folder, ids, name="ids.json"):
    path = Path(folder) / name
    path.write_text(json.dumps(ids))
    return path


class Server:
    """`trireme serve` on a free port of 127.0.0.1, as a context manager."""

    def __init__(self, model, *arguments, ranks=0):
        self.folder = tempfile.TemporaryDirectory()
        self.port_file = Path(self.folder.name) / "port"
        self.log = open(Path(self.folder.name) / "log", "w+b")
        self.process = subprocess.Popen(
            command(["serve", "--model", model, "--listen", "127.0.0.1:0", "--port-file",
                     self.port_file, *arguments], ranks),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)

    def __enter__(self):
        for _ in range(1200):
            if self.port_file.exists() and self.port_file.read_text().strip():
                self.address = "127.0.0.1:" + self.port_file.read_text().strip()
                return self
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}: {self.text()}")
            time.sleep(0.05)
        self.stop()
        raise AssertionError("the server did not start: " + self.text())

    def text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise AssertionError("the server did not end: " + self.text())
        return self.process.returncode

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self.log.close()
            self.folder.cleanup()
