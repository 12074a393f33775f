"""The cases of bad input that a request alone shows: what is sent over REST and over gRPC, and the status that it must be told.

Knows no test; test_bad_input.py has the rows that these cases stand under, sends them, and adds what takes more than a request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from protos.tunesmith.v1 import files_pb2, jobs_pb2, models_pb2, types_pb2
from tests.contract.messages import message
from tests.gateway import MODEL, Gateway
from tests.rpc_client import Client
from tests.tiny_chat import chat_row

JOBS, FILES = "/v1/fine_tuning/jobs", "/v1/files"
GRADERS = "/v1/fine_tuning/alpha/graders/validate"
MULTIPART = {"content-type": "multipart/form-data; boundary=XX"}
JSON = {"content-type": "application/json"}
GOOD = json.dumps(chat_row()).encode() + b"\n"
TWELVE = GOOD * 12
BAD, MISSING, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED
STATUS_OF = {400: BAD, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED, 404: MISSING, 429: EXHAUSTED}
MAX_BODY, MAX_UPLOAD, MAX_PART = 64 * 2**10, 2**20, 1000


@dataclass(frozen=True)
class Seen:
    """The gateway with one key."""

    http: httpx.Client
    rpc: Client


@dataclass(frozen=True)
class World:
    """A gateway with small limits, a project's own things in it, and keys that may less."""

    gateway: Gateway
    own: Seen
    stranger: Seen
    reader: Seen
    revoked: Seen
    full: Seen
    """Of a project with no place for one more byte, and none for a job made from `full_file`."""
    full_file: str
    hurried: Seen
    """Of a project that has no request left."""
    file: str
    deleted: str
    cancelled: str

    @property
    def http(self) -> httpx.Client:
        return self.own.http

    @property
    def rpc(self) -> Client:
        return self.own.rpc

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"model": MODEL, "training_file": self.file} | fields

    def text(self, **fields: str) -> bytes:
        """A good body with raw JSON texts added."""
        return (json.dumps(self.body())[:-1] + "".join(f',"{name}":{value}' for name, value in fields.items()) + "}").encode()

    def post(self, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
        return self.http.post(JOBS, content=content, headers=JSON | headers)

    def create(self, **fields: Any) -> Any:
        return create_as(self.own, self, **fields)


def upload(http: httpx.Client, data: bytes, name: str = "rows.jsonl") -> httpx.Response:
    return http.post(FILES, files={"file": (name, data)}, data={"purpose": "fine-tune"})


def send(rpc: Client, data: bytes, name: str = "rows.jsonl", *, offset: int = 0, sha256: str | None = None) -> Any:
    start = files_pb2.UploadStart(filename=name, purpose="fine-tune", bytes=len(data), sha256=sha256 or hashlib.sha256(data).hexdigest())
    chunk = types_pb2.Chunk(offset=offset, data=data)
    return rpc.files.UploadFile(iter([files_pb2.UploadFileRequest(start=start), files_pb2.UploadFileRequest(chunk=chunk)]))


@dataclass(frozen=True)
class Case:
    """One thing that is wrong. What has no meaning over a transport is None there."""

    row: str
    name: str
    status: int
    rest: Callable[[World], httpx.Response] | None = None
    rpc: Callable[[World], object] | None = None
    code: grpc.StatusCode | None = None
    """Unless given, the one that belongs to the HTTP status."""
    words: str = ""
    """Part of the message."""


CASES: list[Case] = []


def case(row: str, name: str, status: int = 400, **how: Any) -> None:
    CASES.append(Case(row, name, status, **how))


def spec(row: str, name: str, words: str = "", *, rpc: bool = True, **fields: Any) -> None:
    """A job that is refused; over gRPC too unless no message can say it."""

    def rest(w: World) -> httpx.Response:
        return w.http.post(JOBS, json=w.body(**fields))

    case(row, name, rest=rest, rpc=(lambda w: w.create(**fields)) if rpc else None, words=words)


def body(row: str, name: str, **fields: str) -> None:
    """A job whose JSON is wrong as a text."""
    case(row, name, rest=lambda w: w.post(w.text(**fields)))


def get_job(job_id: str, seen: Callable[[World], Seen] = lambda w: w.own) -> Callable[[World], object]:
    return lambda w: seen(w).rpc.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))


def with_bearer(bearer: str) -> Callable[[World], object]:
    def call(w: World) -> object:
        method = w.rpc.channel.unary_unary("/tunesmith.v1.Models/ListModels")
        return method(b"", metadata=[("authorization", bearer)] if bearer else [])

    return call


row = "key missing, malformed or revoked"
for bearer in ("", "Bearer", "Basic abc", "Bearer wrong", "Bearer ts_0_0", "Bearer " + "x" * 5000):
    headers = {"authorization": bearer}
    case(row, bearer[:12] or "none", 401, rest=lambda w, h=headers: w.http.get("/v1/models", headers=h), rpc=with_bearer(bearer))
case(
    row, "revoked", 401,
    rest=lambda w: w.revoked.http.get("/v1/models"), rpc=lambda w: w.revoked.rpc.models.ListModels(models_pb2.ListModelsRequest()),
)  # fmt: skip

row = "scope missing"
case(row, "a job", 403, rest=lambda w: w.reader.http.post(JOBS, json=w.body()), rpc=lambda w: create_as(w.reader, w), words="'write'")
case(row, "a file", 403, rest=lambda w: upload(w.reader.http, TWELVE), rpc=lambda w: send(w.reader.rpc, TWELVE), words="'write'")
case(row, "administration", 403, rest=lambda w: w.own.http.get("/v1/organization/projects"), words="'admin'")


def create_as(seen: Seen, w: World, **fields: Any) -> Any:
    return seen.rpc.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=message(types_pb2.JobSpec(), w.body(**fields))))


row = "another project's id"
case(
    row, "job", 404, words="No such fine-tuning job",
    rest=lambda w: w.stranger.http.get(f"{JOBS}/{w.cancelled}"), rpc=lambda w: get_job(w.cancelled, lambda w: w.stranger)(w),
)  # fmt: skip
case(
    row, "file", 404, words="No such file",
    rest=lambda w: w.stranger.http.get(f"{FILES}/{w.file}"),
    rpc=lambda w: w.stranger.rpc.files.GetFile(files_pb2.GetFileRequest(file_id=w.file)),
)  # fmt: skip

row = "id of a form that no id has"
for name, text in {"steps": "../x", "digits": "1" * 5000, "NUL": "\0", "space": "a b", "colon": "a:b"}.items():
    quoted = "".join(f"%{ord(letter):02x}" if not letter.isalnum() else letter for letter in text)
    case(row, f"job, {name}", 404, rest=lambda w, q=quoted: w.http.get(f"{JOBS}/{q}"), rpc=get_job(text))
    case(
        row, f"file, {name}", 404, rest=lambda w, q=quoted: w.http.get(f"{FILES}/{q}/content"),
        rpc=lambda w, t=text: list(w.rpc.files.DownloadFile(files_pb2.DownloadFileRequest(file_id=t))),
    )  # fmt: skip

row = "body too large, declared or chunked"
case(row, "declared, and no JSON", 413, rest=lambda w: w.post(b"x" * (MAX_BODY + 1)))
case(row, "chunked, and no JSON", 413, rest=lambda w: w.post(b"x" * 1000 for _ in range(MAX_BODY // 1000 + 2)))
case(row, "an upload", 413, rest=lambda w: upload(w.http, b"x" * (MAX_UPLOAD + 1)))
case(
    row, "an upload over gRPC", 400, rpc=lambda w: w.rpc.files.UploadFile(iter([files_pb2.UploadFileRequest(
        start=files_pb2.UploadStart(filename="a", purpose="fine-tune", bytes=2**50, sha256="0" * 64))])),
)  # fmt: skip

row = "wrong content type"
for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=utf-16"):
    case(row, kind, 415, rest=lambda w, kind=kind: w.http.post(JOBS, content=w.text(), headers={"content-type": kind}))
case(row, "JSON as a file", 415, rest=lambda w: w.http.post(FILES, json={"file": "x"}))

row = "bad UTF-8, UTF-16"
case(
    row, "bad UTF-8", rest=lambda w: w.post(w.text(suffix='"@"').replace(b"@", b"\x80")),
    rpc=lambda w: w.rpc.keyed.unary_unary("/tunesmith.v1.Jobs/GetJob")(b"\x0a\x02\xff\xfe"),
)  # fmt: skip
case(row, "UTF-16", rest=lambda w: w.post(w.text().decode().encode("utf-16")))

body("duplicate JSON keys", "at the top", model='"other"')
body("duplicate JSON keys", "below", tunesmith='{"priority":1,"priority":2}')

row = "NaN, Infinity, 1e400"
for number in ("NaN", "Infinity", "-Infinity", "1e400"):
    body(row, number, tunesmith=f'{{"training":{{"learning_rate":{number}}}}}')
for value in (float("nan"), float("inf")):
    case(row, f"{value} in a message", rpc=lambda w, v=value: w.create(tunesmith={"training": {"learning_rate": v}}))

row = "lone surrogate, NUL, control characters"
body(row, "lone surrogate", suffix='"\\ud800"')
body(row, "lone surrogate in a key", metadata='{"\\udfff":"x"}')
body(row, "raw line break", metadata='{"a":"b\nc"}')
spec(row, "NUL", metadata={"a": "b\0"})
spec(row, "control character", metadata={"a": "b\x1b"})
spec(row, "control character in a key", metadata={"a\x07": "b"})

body("nesting above 32", "lists", metadata="[" * 33 + "]" * 33)
case("nesting above 32", "a bomb of brackets", rest=lambda w: w.post(b"[" * 60_000))
body("integer of 5,000 digits", "seed", seed="1" * 5000)
body("integer of 5,000 digits", "below", tunesmith='{"priority":-' + "9" * 5000 + "}")

row = "value of another type"
for value in ("3", True, 3.0, None, [3]):
    spec(row, f"epochs: {value!r}", "an integer", rpc=False, hyperparameters={"n_epochs": value})
spec(row, "a text where an object belongs", "an object", rpc=False, tunesmith="x")
spec(row, "a number where an id belongs", "a string", rpc=False, training_file=3)

row = "unknown field"
spec(row, "at the top", "did you mean 'training_file'?", rpc=False, trainning_file="x")
spec(row, "below", "did you mean 'n_epochs'?", rpc=False, hyperparameters={"n_epoch": 1})
case(row, "of a newer client", words="1000", rpc=lambda w: newer(w))


def newer(w: World) -> object:
    request = jobs_pb2.CreateJobRequest(spec=message(types_pb2.JobSpec(), w.body()))
    request.spec.tunesmith.training.MergeFromString(b"\xc0\x3e\x01")  # field 1000
    return w.rpc.jobs.CreateJob(request)


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


row = "hyperparameter out of range"
spec(row, "epochs", "an integer from 1 to 50, not 51", method=supervised(n_epochs=51))
spec(row, "batch size", "an integer from 1 to 256, not 0", method=supervised(batch_size=0))
spec(row, "rank", "an integer from 1 to 512, not 513", tunesmith={"adapter": {"r": 513}})
spec(row, "learning rate", "a number above 0 and at most 1, not 2.0", tunesmith={"training": {"learning_rate": 2.0}})
spec(row, "length", tunesmith={"training": {"max_length": 2**32 - 1}})
spec(row, "length beyond the model's", tunesmith={"training": {"max_length": 131_072}})
spec(row, "seed", "an integer from 0 to 2147483647", seed=2**31)

row = "contradictory settings"
spec(row, "epochs twice", "give it once", rpc=False, hyperparameters={"n_epochs": 2}, method=supervised(n_epochs=3))
spec(row, "half a mapping", tunesmith={"data": {"mapping": {"prompt": "a"}}})
spec(row, "two mappings", tunesmith={"data": {"mapping": {"prompt": "a", "completion": "b", "messages": "c"}}})
case(
    row, "filter for metadata and for none", rest=lambda w: w.http.get(f"{JOBS}?metadata=null&metadata[a]=b"),
    rpc=lambda w: w.rpc.jobs.ListJobs(jobs_pb2.ListJobsRequest(metadata={"a": "b"}, without_metadata=True)),
)  # fmt: skip

row = "base model not in the catalogue"
spec(row, "a job", "is not in the catalogue", model="nobody/knows")
case(
    row, "a look", 404, rest=lambda w: w.http.get("/v1/models/nobody/knows"),
    rpc=lambda w: w.rpc.models.GetModel(models_pb2.GetModelRequest(model="nobody/knows")),
)  # fmt: skip

row = "remote code, pickled weights, path or URL as model"
for name in ("/etc/passwd", "../tiny", "file:///etc/passwd", "https://example.com/model", "s3://bucket/model", "pytorch_model.bin"):
    spec(row, name, "is not in the catalogue", model=name)
spec(row, "trust_remote_code", "Unknown field", rpc=False, tunesmith={"trust_remote_code": True})
spec(row, "auto_map", "Unknown field", rpc=False, tunesmith={"adapter": {"auto_map": {"AutoModel": "m.M"}}})

row = "target modules that match nothing, or a catastrophic pattern"
for name in ("no_such", "(a+)+$", "(.*)*proj", "*", "..", "lm_head"):
    spec(row, name, tunesmith={"adapter": {"target_modules": [name]}})

row = "launcher keys, paths, environment or command"
for name, value in {"env": {"LD_PRELOAD": "x"}, "command": "sh", "hostfile": "/etc/hosts", "deepspeed": {"launcher": "pdsh"}}.items():
    spec(row, name, "Unknown field", rpc=False, tunesmith={"resources": {name: value}})
    spec(row, f"{name} beside", "Unknown field", rpc=False, **{name: value})

row = "broken or 10,000-part multipart"
PART = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\nabc\r\n'
PURPOSE = b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
OTHER = b'--XX\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
END = b"--XX--\r\n"
for name, content in {
    "empty": b"", "cut": PART + PURPOSE, "cut within": PART[:-5], "no purpose": PART + END, "no file": PURPOSE + END,
    "twice": PART + PART + PURPOSE + END, "unknown part": PART + PURPOSE + OTHER + END, "10,000 parts": PART + PURPOSE * 10_000 + END,
    "10,000 unknown parts": OTHER * 10_000 + END, "a header without end": b"--XX\r\nX: " + b"y" * 100_000, "not multipart": b"abc",
}.items():  # fmt: skip
    case(row, name, rest=lambda w, c=content: w.http.post(FILES, content=c, headers=MULTIPART))
case(row, "no boundary", rest=lambda w: w.http.post(FILES, content=PART + END, headers={"content-type": "multipart/form-data"}))
case(row, "a part too large", 413, rest=lambda w: w.http.post(FILES, content=PART * 20_000 + END, headers=MULTIPART))

row = "upload part gap or checksum mismatch"
case(row, "gap", rest=lambda w: completed(w, declared=6), rpc=lambda w: send(w.rpc, b"abc", offset=1))
case(row, "checksum", rest=lambda w: completed(w, md5="0" * 32), rpc=lambda w: send(w.rpc, b"abc", sha256="0" * 64))
case(row, "part of another upload", rest=lambda w: completed(w, part="part_none"))
case(row, "part too large", 413, rest=lambda w: completed(w, declared=2000, data=b"x" * (MAX_PART + 1)))
case(row, "no hash", rpc=lambda w: send(w.rpc, b"abc", sha256="abc"))


def completed(w: World, declared: int = 3, data: bytes = b"abc", part: str | None = None, md5: str | None = None) -> httpx.Response:
    new = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": declared, "mime_type": "text/plain"}
    upload_id = w.http.post("/v1/uploads", json=new).json()["id"]
    sent = w.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": data})
    if sent.status_code != 200:
        return sent
    order = {"part_ids": [part or sent.json()["id"]]} | ({"md5": md5} if md5 else {})
    return w.http.post(f"/v1/uploads/{upload_id}/complete", json=order)


row = "Idempotency-Key too long, of another body, or in flight"
for name, text in {"too long": "k" * 256, "not ASCII": "ü", "empty": ""}.items():
    case(
        row, name, rest=lambda w, t=text: w.post(w.text(), **{"idempotency-key": t.encode("latin-1")}),
        rpc=lambda w, t=text: keyed(w, t),
    )  # fmt: skip
case(row, "of another body", words="another request body", rest=lambda w: rest_twice(w), rpc=lambda w: rpc_twice(w))


def keyed(w: World, key: str, **fields: Any) -> Any:
    request = jobs_pb2.CreateJobRequest(spec=message(types_pb2.JobSpec(), w.body(**fields)), idempotency_key=key)
    return w.rpc.jobs.CreateJob(request)


def rest_twice(w: World) -> httpx.Response:
    headers = {"idempotency-key": "twice"}
    assert w.http.post(JOBS, json=w.body(), headers=headers).status_code == 200
    return w.http.post(JOBS, json=w.body(seed=1), headers=headers)


def rpc_twice(w: World) -> object:
    assert keyed(w, "twice over gRPC").job.id
    return keyed(w, "twice over gRPC", seed=1)


row = "deleted or foreign file"
for param in ("training_file", "validation_file"):
    case(
        row, f"deleted as {param}", words="No such file", rest=lambda w, p=param: w.http.post(JOBS, json=w.body(**{p: w.deleted})),
        rpc=lambda w, p=param: w.create(**{p: w.deleted}),
    )  # fmt: skip
case(row, "foreign", words="No such file", rest=lambda w: w.stranger.http.post(JOBS, json=w.body()), rpc=lambda w: create_as(w.stranger, w))
case(
    row, "deleted, its bytes", 404, rest=lambda w: w.http.get(f"{FILES}/{w.deleted}/content"),
    rpc=lambda w: list(w.rpc.files.DownloadFile(files_pb2.DownloadFileRequest(file_id=w.deleted))),
)  # fmt: skip

row = "cancel of a finished job"
case(
    row, "cancel", words="cancelled already", rest=lambda w: w.http.post(f"{JOBS}/{w.cancelled}/cancel"),
    rpc=lambda w: w.rpc.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=w.cancelled)),
)  # fmt: skip
case(
    row, "pause", rest=lambda w: w.http.post(f"{JOBS}/{w.cancelled}/pause"),
    rpc=lambda w: w.rpc.jobs.PauseJob(jobs_pb2.PauseJobRequest(job_id=w.cancelled)),
)  # fmt: skip

row = "tampered cursor"
for name, text in {"unknown": "ftjob-none", "SQL": "' OR 1=1", "NUL": "\0", "empty": "", "long": "x" * 5000}.items():
    case(
        row, name, rest=lambda w, t=text: w.http.get(JOBS, params={"after": t}),
        rpc=lambda w, t=text: w.rpc.jobs.ListJobs(jobs_pb2.ListJobsRequest(after=t)),
    )  # fmt: skip
    case(
        row, f"{name}, of files", rest=lambda w, t=text: w.http.get(FILES, params={"after": t}),
        rpc=lambda w, t=text: w.rpc.files.ListFiles(files_pb2.ListFilesRequest(after=t)),
    )  # fmt: skip

row = "webhook to an address that is not public"
for url in (
    "https://127.0.0.1/", "https://10.0.0.1/", "https://192.168.1.1/", "https://169.254.169.254/latest/meta-data", "https://[::1]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:a9fe:a9fe]/", "https://localhost/", "https://2130706433/", "https://0x7f.1/",
    "http://example.com/", "https://user:pw@example.com/", "file:///etc/passwd",
):  # fmt: skip
    case(row, url, words="can't be used", rest=lambda w, u=url: w.http.post("/v1/webhook_endpoints", json={"url": u}))

row = "template escape or endless template"
for template in ("{{ ''.__class__.__mro__ }}", "{{ sample.output_text | upper }}", "{% for a in range(9**9) %}{% endfor %}{{x}}"):
    grader = {"type": "string_check", "name": "n", "input": template, "reference": "x", "operation": "eq"}
    case(row, template, words="grader.input", rest=lambda w, g=grader: w.http.post(GRADERS, json={"grader": g}))
spec(row, "template of a client's own", "Unknown field", rpc=False, tunesmith={"data": {"chat_template": "{% for a in b %}{% endfor %}"}})

row = "header bomb"
case(row, "one large", 431, rest=lambda w: w.http.get("/v1/models", headers={"x-big": "a" * 40_000}))
case(row, "many", 431, rest=lambda w: w.http.get("/v1/models", headers={f"x-{n}": "a" for n in range(120)}))
case(
    row, "metadata", 431, code=EXHAUSTED,
    rpc=lambda w: w.rpc.models.ListModels(models_pb2.ListModelsRequest(), metadata=[(f"x-{n}", "a" * 1000) for n in range(40)]),
)  # fmt: skip

row = "CRLF in fields"
spec(row, "metadata", metadata={"a": "b\r\nlevel=error"})
spec(row, "suffix", suffix="a\r\nb")
spec(row, "model", model="tiny\r\nx")
case(
    row, "file name in an id", 404, rest=lambda w: w.http.get(f"{FILES}/a%0d%0ab"),
    rpc=lambda w: w.rpc.files.GetFile(files_pb2.GetFileRequest(file_id="a\r\nb")),
)  # fmt: skip

row = "gRPC oversize, bad enum, deadline 0"
case(row, "message", code=EXHAUSTED, rpc=get_job("x" * (5 << 20)))
case(row, "chunk", code=EXHAUSTED, rpc=lambda w: send(w.rpc, bytes(2**20 + 1)))
case(row, "enum", rpc=lambda w: w.create(tunesmith={"training": {"schedule": 77}}))
case(row, "enum of a list", rpc=lambda w: w.rpc.files.ListFiles(files_pb2.ListFilesRequest(order=9)))  # type: ignore[arg-type]
case(row, "garbage", rpc=lambda w: w.rpc.keyed.unary_unary("/tunesmith.v1.Jobs/GetJob")(b"\xff\xff\xff"))
case(
    row, "deadline 0", code=grpc.StatusCode.DEADLINE_EXCEEDED,
    rpc=lambda w: w.rpc.models.ListModels(models_pb2.ListModelsRequest(), timeout=0),
)  # fmt: skip

row = "quota or rate exceeded"
case(row, "bytes", 429, words="stored_bytes", rest=lambda w: upload(w.full.http, TWELVE), rpc=lambda w: send(w.full.rpc, TWELVE))
case(
    row, "jobs", 429, words="queued_jobs",
    rest=lambda w: w.full.http.post(JOBS, json=w.body(training_file=w.full_file)),
    rpc=lambda w: create_as(w.full, w, training_file=w.full_file),
)  # fmt: skip
case(
    row, "rate", 429, words="requests_per_minute",
    rest=lambda w: w.hurried.http.get("/v1/models"), rpc=lambda w: w.hurried.rpc.models.ListModels(models_pb2.ListModelsRequest()),
)  # fmt: skip
