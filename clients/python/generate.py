#!/usr/bin/env python3
"""Streams one answer from a Trireme server.

    pip install grpcio grpcio-tools
    clients/python/generate.py --server 127.0.0.1:50051 "The capital of France is"

The stubs are made from proto/ as this starts. If the connection breaks on the way, the request goes
on and is picked up again at the first token that has not been seen.
"""
import argparse
import sys
import uuid
from pathlib import Path

try:
    import grpc
    import grpc_tools  # noqa: F401  makes the stubs
except ImportError:
    sys.exit("generate.py needs two packages: pip install grpcio grpcio-tools")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))
messages, services = grpc.protos_and_services("trireme/v1/trireme.proto")


def build_request(arguments):
    request = messages.GenerateRequest(
        request_id=uuid.uuid4().hex, text=arguments.prompt,
        on_disconnect=messages.ON_DISCONNECT_CONTINUE)
    request.stop.max_tokens = arguments.max_tokens
    request.stop.stop.extend(arguments.stop)
    request.sampling.temperature = arguments.temperature
    if arguments.seed is not None:
        request.sampling.seed = arguments.seed
    return request


def stream_output(stub, request):
    """Yields the deltas of output 0, each token once, over as many connections as it takes."""
    seen = 0
    events = stub.Generate(request)
    for _ in range(10):
        try:
            for event in events:
                if event.HasField("delta"):
                    seen += len(event.delta.token_ids)
                    yield event.delta
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or seen == 0:
                raise
            events = stub.Attach(messages.AttachRequest(
                request_id=request.request_id, from_token_index=[seen]), wait_for_ready=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", default=[])
    arguments = parser.parse_args()
    with grpc.insecure_channel(arguments.server) as channel:
        stub = services.TriremeStub(channel)
        try:
            for delta in stream_output(stub, build_request(arguments)):
                print(delta.text, end="", flush=True)
                if delta.finish_reason:
                    usage = delta.usage
                    print(f"\n[{messages.FinishReason.Name(delta.finish_reason)}: "
                          f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
                          f"{usage.completion_tokens} generated]", file=sys.stderr)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
