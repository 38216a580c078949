"""The commands of a router, as messages."""

from __future__ import annotations

from polyphase.v1 import common_pb2, inference_pb2, worker_pb2


def prefill(
    seq: int, made: inference_pb2.GenerateRequest, decode_here: bool = False, epoch: int = 1
) -> worker_pb2.Command:
    """A StartPrefill."""
    start = worker_pb2.StartPrefill(seq=seq, epoch=epoch, request=made, decode_here=decode_here)
    return worker_pb2.Command(start_prefill=start)


def decode(
    seq: int,
    made: inference_pb2.GenerateRequest,
    kv: common_pb2.KVHandle,
    first_index: int = 0,
    epoch: int = 1,
) -> worker_pb2.Command:
    """A StartDecode."""
    start = worker_pb2.StartDecode(seq=seq, epoch=epoch, request=made, kv=kv, first_index=first_index)
    return worker_pb2.Command(start_decode=start)


def stop(seq: int) -> worker_pb2.Command:
    """A StopPhase."""
    return worker_pb2.Command(stop_phase=worker_pb2.StopPhase(seq=seq))


def release(kv: common_pb2.KVHandle) -> worker_pb2.Command:
    """A ReleaseKV."""
    return worker_pb2.Command(release_kv=worker_pb2.ReleaseKV(kv=kv))
