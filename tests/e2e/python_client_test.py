"""clients/python/generate.py against a server: the text of `trireme generate`, errors, stops.

Needs grpcio, grpcio-tools of 1.32 or later (Debian 12's is older; launch/fetch_python gets them and
says what TRIREME_PYTHON_PATH should be) and TRIREME_SMOLLM2; without them the test is skipped (exit
77).
"""
import os
import subprocess
import sys
import unittest

from program import ROOT, SMOLLM2, Server, call_json

if os.environ.get("TRIREME_PYTHON_PATH"):
    sys.path.insert(0, os.environ["TRIREME_PYTHON_PATH"])
    os.environ["PYTHONPATH"] = os.environ["TRIREME_PYTHON_PATH"]  # of the clients
try:
    import grpc  # noqa: F401
    from grpc_tools.protoc import _protos_and_services  # noqa: F401  what generate.py rests on
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
if not SMOLLM2:
    print("skipped: TRIREME_SMOLLM2 does not name the model")
    sys.exit(77)

PROMPT = "Rowing a trireme takes"


def client(address, *arguments):
    return subprocess.run(
        [sys.executable, "-B", str(ROOT / "clients/python/generate.py"), "--server", address,
         *map(str, arguments)], capture_output=True, text=True, timeout=60)


class PythonClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(SMOLLM2, "--kv-memory", "64MiB").__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def test_streams_what_generate_gives(self):
        want = call_json("generate", "--model", SMOLLM2, "--prompt", PROMPT, "--temperature", 0,
                         "--max-tokens", 16)
        done = client(self.server.address, PROMPT, "--max-tokens", 16)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, want["text"])
        self.assertIn("FINISH_REASON_LENGTH", done.stderr)
        self.assertIn("16 generated", done.stderr)

    def test_seed_and_stop_arrive(self):
        sampled = [client(self.server.address, PROMPT, "--max-tokens", 16, "--temperature", 1.2,
                          "--seed", seed).stdout for seed in (5, 5, 6)]
        self.assertEqual(sampled[0], sampled[1])
        self.assertNotEqual(sampled[0], sampled[2])
        whole = client(self.server.address, PROMPT, "--max-tokens", 16).stdout
        stop = whole[10:14]
        cut = client(self.server.address, PROMPT, "--max-tokens", 16, "--stop", stop)
        self.assertEqual(cut.stdout, whole[:whole.index(stop)])
        self.assertIn("FINISH_REASON_STOP", cut.stderr)

    def test_errors_are_told(self):
        done = client(self.server.address, PROMPT, "--temperature", -1)
        self.assertEqual(done.returncode, 1)
        self.assertIn("INVALID_ARGUMENT: ", done.stderr)
        self.assertIn("temperature", done.stderr)
        self.assertEqual(client("127.0.0.1:1", PROMPT).returncode, 1)


if __name__ == "__main__":
    unittest.main()
