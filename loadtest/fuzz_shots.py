"""What :mod:`loadtest.fuzz` sends: requests that are wrong in one place or two, and right ones whose answer is known.

A *shot* is a function of ``(seed, worker, index)`` alone, so that one that did harm is made again by its numbers. It is
made of a valid request: fields get values that lie at their limits or beyond, are left out, come twice or too often;
then lengths lie, bytes are changed, callers leave too early. Three doors: Triton's gRPC, Triton's HTTP, the gateway.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from loadtest.connections import framed

Door = Literal["grpc", "http", "gateway"]
MODEL = "toxicity"
SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"
CANARY = "zyxwcanary"
"""Is in every comment, and must be in no log."""
TEXTS = [f"{CANARY} comment number {n}, " + "and more of it, " * (n % 5) for n in range(64)]
"""Comments whose scores are known."""
DOORS: dict[Door, float] = {"grpc": 0.55, "http": 0.33, "gateway": 0.12}
CALLERS_DOORS: dict[Door, float] = {"grpc": 0.85, "gateway": 0.15}
Reach = Literal["callers", "all"]
"""Callers: Envoy's gRPC, and the gateway. All: Triton itself, its HTTP and streams, without Envoy and shield; there are
requests of which 24.10 dies, and some of those are left out (see docker/README.md).
"""
RIGHT = 0.2
"""The share of shots that must be answered, and rightly."""
BOMB = gzip.compress(bytes(1 << 20))
HEAD = 5
"""Bytes before each message of gRPC."""
BATCH_OF_NONE = "known: no rows for the encoder"
"""Callers of these leave: see docker/README.md."""
PARTS = ("_tokenizer", "_encoder")
SOON_S = 0.05
"""A caller that leaves in the middle has waited so long."""


@dataclass(slots=True)
class Shot:
    """One request.

    :ivar kind: how it was made.
    :ivar data: gRPC: framed messages, as they go onto the stream. HTTP: everything, head and body.
    :ivar path: of gRPC's call. :ivar headers: more fields of gRPC's, name and value.
    :ivar places: the ``TEXTS`` that are asked for, where the answer is known; ``read`` says how it is read.
    :ivar leave_s: the caller leaves after so many seconds, answered or not.
    :ivar alone: on a connection of its own, which the server may close; gRPC: ``data`` is all that goes onto it.
    """

    door: Door
    kind: str
    data: bytes
    path: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    places: tuple[int, ...] = ()
    read: str = ""
    leave_s: float | None = None
    alone: bool = False


def make(seed: int, worker: int, index: int, reach: Reach = "all") -> Shot:
    rng = random.Random(f"{seed}/{worker}/{index}")
    inside = reach == "all"
    door = _drawn(rng, DOORS if inside else CALLERS_DOORS)
    if rng.random() < RIGHT:
        return right_shot(rng, door, reach)
    grpc = GRPC if inside else CALLERS_GRPC
    shot: Shot = _drawn(rng, {"grpc": grpc, "http": HTTP, "gateway": GATEWAY}[door])(rng)
    asked = list(asked_of_parts(shot.data)) if door == "grpc" and inside else []  # Envoy refuses them
    if any(map(uncountable, asked)):
        return right_shot(rng, door, reach)
    if any(map(of_no_rows, asked)):
        shot.kind, shot.leave_s = BATCH_OF_NONE, SOON_S
    return shot


def right_shot(rng: random.Random, door: Door, reach: Reach) -> Shot:
    right = {"grpc": right_grpc, "http": right_http, "gateway": right_gateway}[door](rng)
    if reach != "all" and right.read == "stream":
        right.path, right.read, right.kind = INFER, "grpc", "right"
    return right


def asked_of_parts(data: bytes) -> Iterator[pb.ModelInferRequest]:
    """The requests in a shot that go to a model that an ensemble is made of: Envoy lets none of them through."""
    while len(data) > HEAD:
        length = int.from_bytes(data[1:HEAD], "big")
        try:
            request = pb.ModelInferRequest.FromString(data[HEAD : HEAD + length])
        except DecodeError:
            return
        if request.model_name.endswith(PARTS):
            yield request
        data = data[HEAD + length :]


def uncountable(request: pb.ModelInferRequest) -> bool:
    """Whether Triton 24.10 may take its shape, as the number of its bytes wraps around, and die."""
    return any(abs(math.prod(each.shape)) >= 2**61 for each in request.inputs)


def of_no_rows(request: pb.ModelInferRequest) -> bool:
    """Triton 24.10 never answers it."""
    return any(0 in each.shape[:1] for each in request.inputs)


def _drawn(rng: random.Random, shares: dict[Any, float]) -> Any:
    return rng.choices(list(shares), list(shares.values()))[0]


# --- values at limits and beyond

NUMBERS = (0, 1, -1, 2, 63, 64, 65, 127, 255, 256, 65535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
NAMES = (
    "",
    "TEXT",
    "text",
    "TEXT ",
    "TEXT\0",
    "input_ids",
    "scores",
    "truncated",
    "../../etc/passwd",
    "a" * 300,
    "ü",
    "%s",
)
MODELS = (
    *("", "toxicity_tokenizer", "toxicity_encoder", "toxicity ", "Toxicity", "../toxicity", "toxicity/1", "a\0b"),
    *("x" * 5000, "%n%s", "ü"),
)
VERSIONS = ("", "0", "1", "2", "-1", "99999999999999999999", "x", "1 ", "01", "1.0", "\0", "٣")
DTYPES = tuple("BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 BF16 FP32 FP64 BYTES".split()) + (
    "",
    "bytes",
    "STRING",
    "TYPE_STRING",
    "INVALID",
    "X" * 2000,
)
PARAMETERS = (
    *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data", "binary_data_size"),
    *(
        "binary_data_output",
        "classification",
        "shared_memory_region",
        "shared_memory_byte_size",
        "shared_memory_offset",
    ),
    *("triton_enable_empty_final_response", "triton_final_response", "cache", "no_cache", "deadline_ms", "headers", ""),
    "x" * 1000,
)


def text(rng: random.Random) -> str:
    """A comment, of the odd kinds that people and attackers send. It may hold a lone surrogate."""
    kind = rng.randrange(16)
    if kind == 0:
        return CANARY + "\0" * rng.choice((1, 5, 1000))
    if kind == 1:
        return CANARY + "".join(chr(rng.choice((0xD800, 0xDFFF, 0xDBFF))) for _ in range(3))
    if kind == 2 and rng.random() < 0.05:
        return CANARY + rng.choice(("a", " ", "é", "你", "🤡", "a ", "\u0301", "'", '\\"')) * rng.choice(
            (10_000, 100_000)
        )
    if kind == 3:
        return CANARY + "".join(chr(rng.randrange(32)) for _ in range(rng.randint(1, 50)))
    if kind == 4:
        return CANARY + rng.choice(("\u202e", "\ufeff", "\u200b", "\u0301", "\ufffe", "\u2028")) * rng.randint(1, 300)
    if kind == 5:
        return CANARY + "👩‍👩‍👧‍👦" * rng.randint(1, 50)
    if kind == 6:
        return CANARY + "".join(chr(_point(rng)) for _ in range(rng.randint(1, 100)))
    if kind == 7:
        return rng.choice(("", " ", "\n", "\t\t", "\u00a0", "\u3000"))
    if kind == 8:
        return CANARY + rng.choice(
            (" %s%n", " {0}", " ${x}", "'; DROP TABLE a;--", "<script>", "\\x00", "[CLS][SEP]", "##a")
        )
    if kind == 9:
        return CANARY + rng.choice(("i d i o t ", "1d10t ", "a.", "!?", "x" * 40 + " ")) * rng.randint(1, 60)
    return rng.choice(TEXTS)


def _point(rng: random.Random) -> int:
    point = rng.randrange(0x110000)
    return point if not 0xD800 <= point < 0xE000 else 0xFFFD


def encoded(rng: random.Random) -> bytes:
    """A comment as bytes, which may be no UTF-8."""
    row = text(rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        at = rng.randint(0, len(row))
        row = (
            row[:at]
            + rng.choice((b"\xff", b"\xc0\x80", b"\xe0\x80", b"\xf8\x88\x80\x80\x80", b"\x80", b"\xf4\x90\x80\x80"))
            + row[at:]
        )
    return row


def rows(rng: random.Random) -> list[bytes]:
    count = rng.choices((1, 2, 5, 16, 64), (70, 15, 10, 4, 1))[0]
    if count > 5:
        return [rng.choice(TEXTS).encode()] * count
    return [encoded(rng) for _ in range(count)]


def lengths(content: list[bytes]) -> bytes:
    return b"".join(len(row).to_bytes(4, "little") + row for row in content)


def liar(rng: random.Random, raw: bytes) -> bytes:
    """A BYTES tensor whose lengths are not those of its strings, or that ends early or late."""
    kind = rng.randrange(7)
    if kind == 0:
        return raw[: rng.randrange(len(raw) + 1)]
    if kind == 1:
        return raw + rng.randbytes(rng.choice((1, 3, 4, 5, 100)))
    if kind == 2:
        return (
            rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, max(0, len(raw) - 3), len(raw))).to_bytes(4, "little")
            + raw[4:]
        )
    if kind == 3:
        return rng.randbytes(rng.choice((0, 1, 4, 8, 64, 1000)))
    if kind == 4:
        return b"\0" * rng.choice((1, 4, 8, 4096))
    if kind == 5:
        return raw * rng.choice((2, 3))
    return b""


def shape(rng: random.Random, count: int) -> list[int]:
    kind = rng.randrange(8)
    if kind == 0:
        return [rng.choice(NUMBERS), 1]
    if kind == 1:
        return [count, rng.choice(NUMBERS)]
    if kind == 2:
        return []
    if kind == 3:
        return [rng.choice(NUMBERS) for _ in range(rng.randint(1, 8))]
    if kind == 4:
        return [1] * rng.choice((1, 3, 10, 1000))
    if kind == 5:
        return [2**32, 2**32]
    if kind == 6:
        return [count + rng.choice((-1, 1, 2)), 1]
    return [count]


def changed(rng: random.Random, data: bytes) -> bytes:
    """Bits turned; bytes cut out, put in, twice."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(found)) if found else 0
        kind = rng.randrange(6)
        if kind == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[at] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del found[at : at + rng.choice((1, 4, 16, 1000))]
        elif kind == 3:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 16, 200)))
        elif kind == 4:
            part = found[at : at + rng.choice((4, 16, 64))]
            found[at:at] = part * rng.choice((1, 2, 50))
        else:
            del found[at:]
    return bytes(found)


# --- gRPC


def infer(content: list[bytes]) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="TEXT", datatype="BYTES", shape=[len(content), 1])
    return pb.ModelInferRequest(model_name=MODEL, inputs=[tensor], raw_input_contents=[lengths(content)])


def right_grpc(rng: random.Random) -> Shot:
    places = tuple(rng.randrange(len(TEXTS)) for _ in range(rng.choice((1, 1, 1, 2, 4))))
    request = infer([TEXTS[place].encode() for place in places])
    kind = rng.randrange(8)
    if kind == 0:  # in the other of the two places where strings may stand
        del request.raw_input_contents[:]
        request.inputs[0].contents.bytes_contents.extend(TEXTS[place].encode() for place in places)
    elif kind == 1:
        request.model_version = "1"
        request.id = "é" * rng.choice((1, 200))
    elif kind == 2:
        request.outputs.add(name="truncated")
        request.outputs.add(name="scores")
    elif kind == 3:
        request.parameters["timeout"].int64_param = 20_000_000
        request.parameters["anything"].string_param = "x"
    message = request.SerializeToString()
    if kind == 4:
        return Shot(
            "grpc", "right, stream", framed(message), SERVICE + "ModelStreamInfer", places=places, read="stream"
        )
    return Shot("grpc", "right", framed(message), INFER, places=places, read="grpc")


def parameter(rng: random.Random, value: Any) -> None:
    kind = rng.randrange(7)
    if kind == 0:
        value.bool_param = rng.random() < 0.5
    elif kind == 1:
        value.string_param = rng.choice(("", "1", "-1", "true", "x" * 2000, "\0", "NaN"))
    elif kind == 2:
        value.double_param = rng.choice((0.0, -1.0, 1e308, float("nan"), float("inf")))
    elif kind == 3:
        value.uint64_param = rng.choice((0, 1, 2**64 - 1))
    elif kind == 4:
        value.SetInParent()  # no value at all
    else:
        value.int64_param = rng.choice(NUMBERS)


def _inputs(rng: random.Random, request: Any) -> None:
    kind = rng.randrange(8)
    if kind == 0 or not request.inputs or not request.raw_input_contents:
        del request.inputs[:]
    elif kind == 1:
        request.inputs[0].name = rng.choice(NAMES)
    elif kind == 2:
        request.inputs.add().CopyFrom(request.inputs[0])
        if rng.random() < 0.5:
            request.raw_input_contents.append(request.raw_input_contents[0])
    elif kind == 3:
        for _ in range(rng.choice((1, 10, 300))):
            request.inputs.add(name=rng.choice(NAMES), datatype=rng.choice(DTYPES), shape=[1, 1])
    elif kind == 4:
        del request.raw_input_contents[:]
    elif kind == 5:
        request.raw_input_contents.extend([b"", rng.randbytes(8)] * rng.choice((1, 100)))
    else:
        contents = request.inputs[0].contents
        field = rng.choice(("bool", "int", "int64", "uint", "uint64", "fp32", "fp64"))
        getattr(contents, f"{field}_contents").extend([1] * rng.choice((1, 2, 1000)))
        if rng.random() < 0.5:
            contents.bytes_contents.extend(rows(rng))
        if rng.random() < 0.7:
            del request.raw_input_contents[:]


def _outputs(rng: random.Random, request: Any) -> None:
    for _ in range(rng.choice((1, 2, 3, 100))):
        output = request.outputs.add(name=rng.choice(("scores", "truncated", *NAMES)))
        if rng.random() < 0.6:
            parameter(rng, output.parameters[rng.choice(("classification", "classification", *PARAMETERS))])


def _parameters(rng: random.Random, request: Any) -> None:
    where = request if rng.random() < 0.7 or not request.inputs else request.inputs[0]
    for _ in range(rng.choice((1, 1, 2, 50))):
        parameter(rng, where.parameters[rng.choice(PARAMETERS)])


def _shape(rng: random.Random, request: Any) -> None:
    if request.inputs:
        count = request.inputs[0].shape[0] if request.inputs[0].shape else 1
        request.inputs[0].shape[:] = shape(rng, count if abs(count) < 1000 else 1)


def _dtype(rng: random.Random, request: Any) -> None:
    if request.inputs:
        request.inputs[0].datatype = rng.choice(DTYPES)


def _raw(rng: random.Random, request: Any) -> None:
    if request.raw_input_contents:
        request.raw_input_contents[0] = liar(rng, request.raw_input_contents[0])


def _model(rng: random.Random, request: Any) -> None:
    request.model_name = rng.choice((MODEL, *MODELS))
    request.model_version = rng.choice(VERSIONS)
    if rng.random() < 0.2:
        request.id = rng.choice(("", "\0", "x" * 20_000, "%s", "\u202e"))


def _encoder(rng: random.Random, request: Any) -> None:
    """Past the ensemble: token ids as no tokenizer gives them, straight to the encoder."""
    request.model_name = "toxicity_encoder"
    del request.inputs[:], request.raw_input_contents[:]
    count, width = rng.choice((1, 1, 2, 64)), rng.choice((0, 1, 5, 128, 129, 2000))
    ids = [
        rng.choice((-1, 0, 1, 101, 30_521, 30_522, -2, 2**31 - 1, -(2**31))) for _ in range(min(count * width, 4000))
    ]
    request.inputs.add(name="input_ids", datatype="INT32", shape=[count, width])
    request.raw_input_contents.append(struct.pack(f"<{len(ids)}i", *ids))


STRUCTURE: tuple[tuple[str, Callable[[random.Random, Any], None]], ...] = (
    ("inputs", _inputs),
    ("outputs", _outputs),
    ("parameters", _parameters),
    ("shape", _shape),
    ("data type", _dtype),
    ("lengths of strings", _raw),
    ("model, version, id", _model),
    ("token ids", _encoder),
)


def mutated(rng: random.Random) -> tuple[str, Any]:
    """A request of gRPC's that is wrong in a place or two, and what was changed first."""
    request = infer(rows(rng))
    name, change = rng.choice(STRUCTURE)
    change(rng, request)
    if rng.random() < 0.25:
        rng.choice(STRUCTURE)[1](rng, request)
    return name, request


def grpc_structure(rng: random.Random) -> Shot:
    name, request = mutated(rng)
    return Shot("grpc", name, framed(request.SerializeToString()), INFER)


def grpc_text(rng: random.Random) -> Shot:
    return Shot("grpc", "text", framed(infer(rows(rng)).SerializeToString()), INFER)


def grpc_bytes(rng: random.Random) -> Shot:
    if rng.random() < 0.2:
        return Shot("grpc", "random bytes", framed(rng.randbytes(rng.choice((0, 1, 10, 100, 5000)))), INFER)
    return Shot("grpc", "changed bytes", framed(changed(rng, infer(rows(rng)).SerializeToString())), INFER)


def grpc_frame(rng: random.Random) -> Shot:
    """The five bytes before each message: lengths that lie, flags for no compression; none, or two messages."""
    message = infer([rng.choice(TEXTS).encode()]).SerializeToString()
    kind = rng.randrange(6)
    if kind == 0:
        data = (
            b"\0"
            + rng.choice((0, 1, len(message) - 1, len(message) + 1, 2**31, 2**32 - 1)).to_bytes(4, "big")
            + message
        )
    elif kind == 1:
        data = bytes([rng.choice((1, 2, 255))]) + framed(message)[1:]
    elif kind == 2:
        data = b""
    elif kind == 3:
        data = framed(message) * rng.choice((2, 5))
    elif kind == 4:
        data = framed(message)[: rng.randrange(5 + len(message))]
    else:
        return Shot(
            "grpc",
            "compressed messages",
            b"\1" + framed(rng.choice((gzip.compress(message), BOMB, message, b"")))[1:],
            INFER,
            ((b"grpc-encoding", rng.choice((b"gzip", b"deflate", b"identity", b"snappy", b""))),),
        )
    return Shot("grpc", "gRPC's lengths and flags", data, INFER)


FIELDS = (
    *((b"grpc-timeout", value) for value in (b"1u", b"1n", b"5m", b"0S")),
    (b"grpc-timeout", b"99999999H"),
    (b"grpc-timeout", b"x"),
    (b"grpc-timeout", b"-1S"),
    (b"grpc-timeout", b""),
    (b"x-bin", b"!!! no base64"),
    (b"grpc-trace-bin", b"AAAA"),
    (b"grpc-tags-bin", b"A"),
    (b"x", b"y" * 7000),
    (b"x", b"y" * 40_000),
    (b"x", b"\xff\xfe"),
    (b"x" * 3000, b"y"),
    (b"triton-grpc-protocol-tritox-control", b"wrong"),
    (b"authorization", b"Bearer x"),
    (b"grpc-accept-encoding", b"gzip, nothing"),
    (b"grpc-previous-rpc-attempts", b"-1"),
    (b"content-type", b"text/html"),
    (b"te", b"chunked"),
    (b"host", b"other"),
)


def grpc_metadata(rng: random.Random) -> Shot:
    message = infer([rng.choice(TEXTS).encode()]).SerializeToString()
    count = rng.choice((1, 1, 1, 3, 50))
    fields = tuple(rng.choice(FIELDS[:11] if count > 3 else FIELDS) for _ in range(count))
    return Shot("grpc", "metadata and deadlines", framed(message), INFER, fields)


METHODS = {
    "ServerLive": pb.ServerLiveRequest,
    "ServerReady": pb.ServerReadyRequest,
    "ModelReady": pb.ModelReadyRequest,
    "ServerMetadata": pb.ServerMetadataRequest,
    "ModelMetadata": pb.ModelMetadataRequest,
    "ModelConfig": pb.ModelConfigRequest,
    "ModelStatistics": pb.ModelStatisticsRequest,
    "RepositoryIndex": pb.RepositoryIndexRequest,
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest,
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest,
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusRequest,
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest,
    "SystemSharedMemoryUnregister": pb.SystemSharedMemoryUnregisterRequest,
    "CudaSharedMemoryRegister": pb.CudaSharedMemoryRegisterRequest,
    "TraceSetting": pb.TraceSettingRequest,
    "LogSettings": pb.LogSettingsRequest,
}


def grpc_method(rng: random.Random) -> Shot:
    """Triton's other calls, those that are closed to callers, and some that are not there."""
    if rng.random() < 0.1:
        path = rng.choice(
            ("/", "", "/a/b", SERVICE, SERVICE + "modelinfer", "/grpc.health.v1.Health/Check", "x" * 3000)
        )
        return Shot("grpc", "other calls", framed(rng.randbytes(rng.choice((0, 5, 50)))), path)
    name = rng.choice(list(METHODS))
    request = METHODS[name]()
    for field in request.DESCRIPTOR.fields:
        if field.name in ("name", "version", "model_name", "key", "repository_name"):
            setattr(request, field.name, rng.choice((MODEL, "1", *MODELS, *VERSIONS)))
        elif field.cpp_type in (field.CPPTYPE_UINT64, field.CPPTYPE_INT64) and rng.random() < 0.7:
            setattr(request, field.name, rng.choice((0, 1, 2**63 - 1)))
    message = request.SerializeToString()
    if rng.random() < 0.2:
        message = changed(rng, message)
    return Shot("grpc", "other calls", framed(message), SERVICE + name)


def grpc_stream(rng: random.Random) -> Shot:
    """Several requests on one stream, some wrong; the caller stays, or goes."""
    messages = []
    for _ in range(rng.choice((0, 1, 2, 5))):
        request = mutated(rng)[1] if rng.random() < 0.6 else infer([rng.choice(TEXTS).encode()])
        if rng.random() < 0.3:
            parameter(rng, request.parameters["triton_enable_empty_final_response"])
        messages.append(framed(request.SerializeToString()))
    leave_s = rng.choice((None, None, 0.0, 0.001, 0.01))
    return Shot("grpc", "streams", b"".join(messages), SERVICE + "ModelStreamInfer", leave_s=leave_s)


def grpc_left(rng: random.Random) -> Shot:
    """Cancelled while under way."""
    request = infer([rng.choice(TEXTS).encode()] * rng.choice((1, 1, 8)))
    return Shot(
        "grpc", "cancelled", framed(request.SerializeToString()), INFER, leave_s=rng.choice((0.0, 0.0005, 0.002, 0.01))
    )


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def grpc_connection(rng: random.Random) -> Shot:
    """HTTP/2 itself: frames that may not be, floods, lengths that lie."""
    settings = frame(4, 0, 0, b"")
    kind = rng.randrange(11)
    if kind == 0:
        data = rng.randbytes(rng.choice((0, 1, 24, 100, 5000)))
    elif kind == 1:
        data = PREFACE + settings + rng.randbytes(rng.choice((9, 100, 2000)))
    elif kind == 2:
        data = changed(rng, PREFACE + settings + frame(1, 5, 1, b"\x83\x86\x84"))
    elif kind == 3:
        data = (
            PREFACE
            + settings
            + frame(
                rng.randrange(12),
                rng.randrange(256),
                rng.randrange(4),
                rng.randbytes(20),
                rng.choice((0, 19, 21, 2**24 - 1)),
            )
        )
    elif kind == 4:
        data = PREFACE + settings * rng.choice((2, 500))
    elif kind == 5:
        data = PREFACE + settings + frame(6, 0, 0, b"12345678") * rng.choice((1, 300))
    elif kind == 6:  # opened and reset at once, again and again
        head = (
            b"\x83\x86"
            + b"\x04"
            + bytes([len(INFER)])
            + INFER.encode()
            + b"\x01\x01x"
            + b"\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
        )
        data = (
            PREFACE
            + settings
            + b"".join(
                frame(1, 4, 2 * n + 1, head) + frame(3, 0, 2 * n + 1, b"\0\0\0\x08")
                for n in range(rng.choice((1, 100)))
            )
        )
    elif kind == 7:  # headers without end
        data = (
            PREFACE
            + settings
            + frame(1, 0, 1, b"\x83\x86")
            + frame(9, 0, 1, b"\x00\x01x\x01y" * 50) * rng.choice((1, 100))
        )
    elif kind == 8:
        data = (
            PREFACE
            + settings
            + frame(8, 0, 0, rng.choice((0, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")) * rng.choice((1, 3))
        )
    elif kind == 9:  # HPACK that names what was never sent, or never ends
        data = (
            PREFACE
            + settings
            + frame(
                1,
                5,
                1,
                rng.choice(
                    (b"\xff\xff\xff\xff\xff\xff\xff", b"\xbe\xbf", b"\x00\x7f\xff\xff\xff\xff", b"\x3f\xff\xff\xff\x7f")
                ),
            )
        )
    else:
        data = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    return Shot("grpc", "HTTP/2 itself", data, leave_s=SOON_S, alone=True)


GRPC: dict[Callable[[random.Random], Shot], float] = {
    grpc_structure: 40,
    grpc_text: 8,
    grpc_bytes: 15,
    grpc_frame: 6,
    grpc_metadata: 6,
    grpc_method: 8,
    grpc_stream: 7,
    grpc_left: 6,
    grpc_connection: 4,
}

CALLERS_GRPC = {kind: share for kind, share in GRPC.items() if kind is not grpc_stream}

# --- JSON

WORDS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**40,
        "",
        "x",
        "\0",
        "1",
        [],
        {},
        [[]],
        [None],
    ),
    *({"": None}, "x" * 3000, float("nan"), float("inf"), ["a"] * 200),
)


def dumped(rng: random.Random, value: Any) -> bytes:
    """As JSON; lone surrogates as escapes, or as the bytes that they would be."""
    if rng.random() < 0.5:
        return json.dumps(value).encode()
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def mutated_json(rng: random.Random, value: Any) -> Any:
    """One node of the tree changed: another value, gone, twice, deeper."""
    value = copy.deepcopy(value)
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            spots.append((node, key))
            walk(node[key])

    walk(value)
    if not spots:
        return rng.choice(WORDS)
    for _ in range(rng.choice((1, 1, 1, 2))):
        node, key = rng.choice(spots)
        if isinstance(node, dict) and key not in node or isinstance(node, list) and key >= len(node):
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(("", "x", "__proto__", "inputs", "text", "\0", "é", key + " "))] = node.pop(key)
        elif kind == 2 and isinstance(node, list):
            node.extend([copy.deepcopy(node[key])] * rng.choice((1, 3, 70)))
        elif kind == 3:
            for _ in range(rng.choice((1, 10, 90))):
                node[key] = rng.choice(([node[key]], {"a": node[key]}))
        else:
            node[key] = copy.deepcopy(rng.choice(WORDS))
    return value


def odd_json(rng: random.Random, body: bytes) -> bytes:
    """What no serializer writes: pumped tokens, deep nests, huge numbers, keys twice, half escapes."""
    kind = rng.randrange(9)
    many = rng.choice((3, 50, 1000, 1000, 1000, 20_000))
    if kind == 0:
        return rng.choice((b"[", b"{", b'{"a":', b"[[", b'[{"a":[')) * min(many, 5000)
    if kind == 1:  # one token, again and again, closed or not
        start = rng.choice((b'"', b"'", b"", b'{"text":"', b"{text:'", b"{"))
        token = rng.choice(
            (b'\\"', b"\\'", b"a", b"a ", b",", b", ", b"'", b'"', b"\\", b"a:", b"$", b"\\u", b"1", b"-", b"\t")
        )
        return start + token * many
    if kind == 2:
        return body.replace(
            b"1", rng.choice((b"1" * 400, b"1e400", b"-", b"1.", b"0x1", b"01", b"1e99999999", b"NaN")), 1
        )
    if kind == 3:
        return body.replace(b'"', rng.choice((b"'", b"", b'\\"', b"`")))
    if kind == 4:
        return body[:-1] + b"," + body[1:]  # every key twice
    if kind == 5:
        return body.replace(
            b"comment", rng.choice((b"\\ud800", b"\\u00", b"\\x41", b"\\u0000", b"\\ud83d\\ude00", b"\xff", b"\x00"))
        )
    if kind == 6:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" " * many, b"//\n", b"null", b"")) + body
    if kind == 7:
        return body + rng.choice((b"}", b"\0", b" " * many, body, b",", b"//"))
    return rng.choice((b"", b"null", b"1", b'""', b"[]", b"{}", b"true", b"-0", b'"\\ud800"'))


def post(path: str, body: bytes, *fields: str, length: int | None = None) -> bytes:
    head = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Length: {len(body) if length is None else length}",
        *fields,
    ]
    return "\r\n".join((*head, "", "")).encode("utf-8", "surrogateescape") + body


# --- Triton's HTTP

HTTP_INFER = f"/v2/models/{MODEL}/infer"


def request_json(content: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [len(content), 1], "data": content}]}


def binary(raw: bytes, count: int) -> tuple[dict[str, Any], bytes]:
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [count, 1], "parameters": {"binary_data_size": len(raw)}}
    return {"inputs": [tensor]}, raw


def right_http(rng: random.Random) -> Shot:
    places = tuple(rng.randrange(len(TEXTS)) for _ in range(rng.choice((1, 1, 1, 2, 4))))
    if rng.random() < 0.5:
        body = json.dumps(request_json([TEXTS[place] for place in places])).encode()
        return Shot("http", "right", post(HTTP_INFER, body), places=places, read="http")
    head, raw = binary(lengths([TEXTS[place].encode() for place in places]), len(places))
    if rng.random() < 0.5:
        head["parameters"] = {"binary_data_output": True}
    first = json.dumps(head).encode()
    data = post(f"/v2/models/{MODEL}/versions/1/infer", first + raw, f"Inference-Header-Content-Length: {len(first)}")
    return Shot("http", "right", data, places=places, read="http")


def some_request(rng: random.Random) -> dict[str, Any]:
    value = request_json([text(rng) for _ in range(rng.choice((1, 1, 2, 5)))])
    if rng.random() < 0.4:
        value["outputs"] = [
            {
                "name": rng.choice(("scores", "truncated", "x")),
                "parameters": {rng.choice(PARAMETERS): rng.choice(WORDS)},
            }
        ]
    if rng.random() < 0.3:
        value["parameters"] = {rng.choice(PARAMETERS): rng.choice(WORDS) for _ in range(rng.choice((1, 3)))}
    if rng.random() < 0.2:
        value["id"] = rng.choice(WORDS)
    return value


def http_json(rng: random.Random) -> Shot:
    value = some_request(rng)
    tensor = value["inputs"][0]
    kind = rng.randrange(5)
    if kind == 0:
        tensor["shape"] = rng.choice((shape(rng, 1), [1.5, 1], ["1", 1], 1, [10**30, 1], None))
    elif kind == 1:
        tensor["datatype"] = rng.choice(DTYPES)
        tensor["data"] = rng.choice(([1], [1.5], [True], ["x"], [[1]], 1, "x", [1] * 1000, [-1], [2**64], [1e400]))
    else:
        value = mutated_json(rng, value)
    return Shot("http", "JSON", post(HTTP_INFER, dumped(rng, value)))


def http_odd_json(rng: random.Random) -> Shot:
    body = dumped(rng, some_request(rng))
    body = odd_json(rng, body) if rng.random() < 0.5 else changed(rng, body)
    return Shot("http", "JSON that is none", post(HTTP_INFER, body))


def http_binary(rng: random.Random) -> Shot:
    """Binary data behind JSON: sizes and header lengths that lie."""
    content = rows(rng)
    head, raw = binary(lengths(content), len(content))
    tensor = head["inputs"][0]
    size: Any = None
    kind = rng.randrange(6)
    if kind == 0:
        raw = liar(rng, raw)
        tensor["parameters"]["binary_data_size"] = len(raw)
    elif kind == 1:
        tensor["parameters"]["binary_data_size"] = rng.choice(
            (*NUMBERS, 2**64, 1.5, "4", None, True, [], len(raw) - 1, len(raw) + 1)
        )
    elif kind == 2:
        tensor["shape"] = shape(rng, len(content))
    elif kind == 3:
        size = rng.choice((0, -1, 1, 10**9, 2**31, 2**63, 2**64, "x", "", "1.5", "0x10", " 5"))
    elif kind == 4:
        tensor["datatype"] = rng.choice(DTYPES)
    else:
        head = mutated_json(rng, head)
    first = json.dumps(head).encode()
    if rng.random() < 0.1:
        first = changed(rng, first)
    body = first + raw
    fields = [f"Inference-Header-Content-Length: {len(first) if size is None else size}"]
    if rng.random() < 0.05:
        fields.append(fields[0])
    return Shot("http", "binary data, lengths that lie", post(HTTP_INFER, body, *fields))


def http_path(rng: random.Random) -> Shot:
    """Triton's other calls and methods, those that are closed, and some that are not there."""
    name, version = (
        rng.choice((MODEL, MODEL, "toxicity_encoder", "x", "", "..%2f", "%00", "%", "a" * 2000)),
        rng.choice(("1", "0", "-1", "x", "9" * 30)),
    )
    path = rng.choice(
        (
            *(
                "/v2",
                "/v2/",
                "/v2/health/ready",
                "/v2/health/live",
                "/",
                "//",
                "/v3",
                "/v2/models",
                "/metrics",
                "/v2/models/stats",
            ),
            *(
                f"/v2/models/{name}",
                f"/v2/models/{name}/config",
                f"/v2/models/{name}/ready",
                f"/v2/models/{name}/stats",
            ),
            *(
                f"/v2/models/{name}/versions/{version}",
                f"/v2/models/{name}/versions/{version}/infer",
                f"/v2/models/{name}/infer",
            ),
            *("/v2/repository/index", f"/v2/repository/models/{name}/load", f"/v2/repository/models/{name}/unload"),
            *(
                "/v2/systemsharedmemory/status",
                f"/v2/systemsharedmemory/region/{name}/register",
                "/v2/cudasharedmemory/status",
            ),
            *("/v2/trace/setting", "/v2/logging", f"/v2/models/{name}/generate", f"/v2/models/{name}/trace/setting"),
        )
    )
    method = rng.choice(("GET", "GET", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"))
    body = dumped(rng, mutated_json(rng, some_request(rng))) if method in ("POST", "PUT", "PATCH") else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return Shot("http", "other calls", head.encode() + body, alone=True)


def wrong_lengths(rng: random.Random, door: Door, path: str, body: bytes, chunks: bool) -> Shot:
    """HTTP/1.1 itself: lengths that lie, chunks, heads that are none. The caller leaves when it likes."""
    plain = post(path, body, "Content-Type: application/json")
    kind = rng.randrange(9)
    if kind == 8 and not chunks:
        kind = 0
    if kind == 0:
        data = post(
            path,
            body,
            "Content-Type: application/json",
            length=rng.choice((0, 1, max(0, len(body) - 1), len(body) + 1, 10**6)),
        )
    elif kind == 1:
        data = plain.replace(
            b"Content-Length: ",
            b"Content-Length: " + rng.choice((b"-", b"+", b"0x", b"9" * 30, b"x", b"1, ", b"\xd9\xa3")),
        )
    elif kind == 2:
        data = plain.replace(
            b"Host: ",
            rng.choice(
                (b"Content-Length: 5\r\nHost: ", b"", b"Host: a\r\nHost: ", b"Host: " + b"a" * 5000, b": ", b"Host\0: ")
            ),
        )
    elif kind == 3:
        data = plain[: rng.randrange(len(plain))]
    elif kind == 4:
        data = changed(rng, plain)
        if not chunks and b"chunked" in data.lower():  # cannot happen by these changes; for certain
            data = plain
    elif kind == 5:
        data = plain.replace(
            b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2.0", b"", b"http/1.1", b"HTTP/1.1 x"))
        )
    elif kind == 6:
        coding = rng.choice((b"gzip", b"deflate", b"br", b"gzip, gzip", b"x"))
        packed = rng.choice((gzip.compress(body), BOMB, body, gzip.compress(body)[:-9]))
        data = post(path, packed, f"Content-Encoding: {coding.decode()}", "Content-Type: application/json")
    elif kind == 7:
        many = rng.choice((10, 200, 2000))
        data = plain.replace(
            b"Host: ",
            rng.choice((b"x: y\r\n" * many, b"x: " + b"y" * 40 * many + b"\r\n", b"Expect: 100-continue\r\n"))
            + b"Host: ",
        )
    else:
        size = rng.choice((b"5", b"%x" % len(body), b"-1", b"ffffffff", b"ffffffffffffffff", b"0", b"x", b"5;a=b", b""))
        head = (
            plain[: plain.find(b"Content-Length")]
            + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        data = head + size + b"\r\n" + body + b"\r\n" + rng.choice((b"0\r\n\r\n", b"", b"0\r\nx: y\r\n\r\n"))
    return Shot(door, "HTTP itself", data, leave_s=SOON_S, alone=True)


def http_lengths(rng: random.Random) -> Shot:
    # no chunks: Triton 24.10 dies of them (CVE-2025-23310), and its HTTP is closed to callers for that
    return wrong_lengths(rng, "http", HTTP_INFER, json.dumps(request_json([rng.choice(TEXTS)])).encode(), chunks=False)


HTTP: dict[Callable[[random.Random], Shot], float] = {
    http_json: 40,
    http_odd_json: 20,
    http_binary: 25,
    http_path: 8,
    http_lengths: 7,
}

# --- the gateway

ANALYZE, SUGGEST = "/v1alpha1/comments:analyze", "/v1alpha1/comments:suggestscore"
ATTRIBUTES = ("TOXICITY", "SEVERE_TOXICITY", "PROFANITY", "THREAT", "INSULT", "IDENTITY_ATTACK")
"""In the order of the model's labels."""
JSON = "Content-Type: application/json"


def analyze_json(comment: str) -> dict[str, Any]:
    return {
        "comment": {"text": comment, "type": "PLAIN_TEXT"},
        "languages": ["en"],
        "requestedAttributes": {name: {} for name in ATTRIBUTES},
        "doNotStore": True,
    }


def right_gateway(rng: random.Random) -> Shot:
    if rng.random() < 0.5:
        place = rng.randrange(len(TEXTS))
        body = json.dumps(analyze_json(TEXTS[place])).encode()
        return Shot("gateway", "right", post(ANALYZE + "?key=a", body, JSON), places=(place,), read="analyze")
    places = tuple(rng.randrange(len(TEXTS)) for _ in range(rng.choice((1, 1, 3))))
    body = json.dumps({"texts": [TEXTS[place] for place in places]}).encode()
    return Shot("gateway", "right", post("/predict", body, JSON), places=places, read="predict")


def gateway_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    kind = rng.randrange(8)
    if kind < 3:
        value = analyze_json(text(rng))
        value["spanAnnotations"] = rng.random() < 0.1
        value["clientToken"] = rng.choice(("", "a", "\ud800", "é"))
        value["context"] = {"entries": [{"text": "x"}]}
        return ANALYZE, value
    if kind < 5:
        value = {"texts": [text(rng) for _ in range(rng.choice((0, 1, 2, 5)))], "policy": rng.choice(("standard", "x"))}
        if rng.random() < 0.03:
            value = {"text": text(rng)[:300], "spans": True}
        return "/predict", value
    if kind == 5:
        score = {"summaryScore": {"value": rng.choice((0, 0.5, 1, -1, 2)), "type": "PROBABILITY"}}
        span = {"begin": rng.choice((0, -1, 5, 2**31)), "end": rng.choice((1, 5, 2**31 - 1)), "score": {"value": 0.5}}
        scores = {rng.choice((*ATTRIBUTES, "x")): {**score, "spanScores": [span]}}
        return SUGGEST, {"comment": {"text": text(rng)}, "attributeScores": scores, "languages": ["en"]}
    if kind == 6:
        return "/rollout", {
            "candidate": rng.choice(("x", "toxicity", None, "\0", "a" * 3000)),
            "share": rng.choice((0, 0.5, 2)),
        }
    return "/models/switch", {
        "model": rng.choice(("x", "toxicity", "", "../x", "\ud800")),
        "reload": rng.random() < 0.1,
    }


def gateway_json(rng: random.Random) -> Shot:
    path, value = gateway_request(rng)
    if rng.random() < 0.7:
        value = mutated_json(rng, value)
    kind = rng.choice((JSON, JSON, JSON, "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16"))
    return Shot("gateway", "JSON", post(path + rng.choice(("", "?key=a")), dumped(rng, value), kind))


def gateway_odd_json(rng: random.Random) -> Shot:
    path, value = gateway_request(rng)
    body = dumped(rng, value)
    body = odd_json(rng, body) if rng.random() < 0.6 else changed(rng, body)
    return Shot("gateway", "JSON that is none", post(path, body, JSON))


QUERIES = (
    "",
    "?",
    "?key=",
    "?key=%ff",
    "?key=a&key=b",
    "?" + "a&" * 150,
    "?" + "a=b;" * 150,
    "?key=%00",
    "?version=v9",
    "?key=" + "x" * 3000,
)


def gateway_path(rng: random.Random) -> Shot:
    path = rng.choice(
        (
            *(
                "/",
                "//",
                "/predict",
                ANALYZE,
                SUGGEST,
                "/models",
                "/policies",
                "/rollout",
                "/healthz",
                "/readyz",
                "/metrics",
            ),
            *(
                "/$discovery/rest",
                "/docs",
                "/openapi.json",
                "/app.js",
                "/../app.py",
                "/%2e%2e/app.py",
                "/%00",
                "/v1alpha1/",
                "/%ff",
            ),
        )
    )
    method = rng.choice(("GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
    fields = rng.choice(
        (
            *(
                "",
                "",
                "Host: evil.example",
                "Host: [",
                "Host: [::1]:80",
                "X-Request-Id: \u20ac",
                "X-Request-Id: " + "a" * 100,
            ),
            *(
                "Origin: null",
                "Authorization: Bearer",
                "X-Goog-Api-Key: \x7f",
                "Upgrade: websocket\r\nConnection: Upgrade",
            ),
            *("Upgrade: h2c", "Content-Type: application/json"),
        )
    )
    if not fields.startswith("Host"):
        fields = "Host: localhost" + ("\r\n" + fields if fields else "")
    head = f"{method} {path}{rng.choice(QUERIES)} HTTP/1.1\r\n{fields}\r\nContent-Length: 0\r\n\r\n"
    return Shot("gateway", "other calls", head.encode(), alone=True)


def gateway_lengths(rng: random.Random) -> Shot:
    return wrong_lengths(rng, "gateway", ANALYZE, json.dumps(analyze_json(rng.choice(TEXTS))).encode(), chunks=True)


GATEWAY: dict[Callable[[random.Random], Shot], float] = {
    gateway_json: 50,
    gateway_odd_json: 25,
    gateway_path: 13,
    gateway_lengths: 12,
}
