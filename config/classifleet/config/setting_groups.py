"""Everything that can be set, by who reads it. `docs/settings.md` is generated from the descriptions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from classifleet.config.setting_sources import CanaryMap, IntList, IntMap, ShadowMap, StrList, StrMap


def default_model_repository() -> str:
    """Where models live when nothing is said: the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return str(Path(base) / "classifleet" / "models")


class PlaceSettings(BaseModel):
    """Where things are."""

    broker_url: str | None = Field(
        None,
        repr=False,
        description="Celery broker. Without one, `classify` and `bulk` start an embedded Redis.",
    )
    redis_url: str | None = Field(
        None, repr=False, description="The ledger's Redis. Default: the broker, when that is Redis."
    )
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")] = Field(
        "default", description="Fleets with different namespaces share a Redis without meeting."
    )
    pools: StrMap = Field(
        default_factory=dict, description="Model to pool, as `name=pool`; models not named go to `default`."
    )
    transport: Literal["atomic", "stock"] = Field(
        "atomic",
        description="How workers take messages from a Redis broker: `atomic` loses none, whoever dies when; `stock` "
        "is kombu's own. Both use the same queues. Other brokers have kombu's.",
    )
    ephemeral: bool = Field(
        False, description="Accept a Redis that persists nothing: a restart of it then loses accepted work."
    )


class ProducerSettings(BaseModel):
    """Producer: what is accepted, and how it is carried."""

    connect_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        5.0, description="How long a call waits for Redis or the broker before it raises."
    )
    max_connections: Annotated[int, Field(ge=2, le=1000)] = Field(
        8, description="Redis connections of one `Fleet` in one process."
    )
    chunk_size: Annotated[int, Field(ge=1, le=256)] = Field(32, description="Images per message of a bulk job.")
    submission_window: Annotated[int, Field(ge=1)] = Field(
        10_000, description="Queued chunks that one job may have; `submit_many` waits above it."
    )
    max_queued_images: IntMap = Field(
        default_factory=dict,
        description="Images that a queue holds before it takes no more (`QueueFull`), as `interactive=n,bulk=n` or by "
        "the queue's name; 0 is no limit. Those not named: interactive=10000, bulk=10000000.",
    )
    max_memory_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8,
        description="Share of Redis' `maxmemory` that new work may fill, the records of accepted work counted; 0 "
        "turns the check off.",
    )
    open_job_ttl_seconds: Annotated[int, Field(ge=60)] = Field(
        86_400,
        description="A job whose producer is silent for so long before its last image is `abandoned`: what was "
        "submitted is finished.",
    )
    durability: Annotated[str, Field(pattern=r"^(none|wait:[1-9][0-9]?)$")] = Field(
        "none",
        description="`wait:N`: an image is accepted, and a record is written, when N replicas of Redis have it.",
    )
    claim_store: str | None = Field(
        None,
        description="`s3://bucket/prefix` or `file:///folder` for images over `inline_max_bytes`; without it they are "
        "parked in Redis. The same for producers and workers.",
    )
    claim_ttl_seconds: Annotated[int, Field(ge=3600)] = Field(
        1_296_000,
        description="An image that lies in `claim_store` for so long was forgotten and is deleted (15 days: longer "
        "than a backlog and than a dead letter).",
    )
    inline_max_bytes: Annotated[int, Field(ge=0, le=1 << 20)] = Field(
        32 << 10,
        description="Image bytes carried in the payload itself; larger ones are parked in `claim_store`, or in Redis.",
    )
    blob_max_total_bytes: Annotated[int, Field(ge=0)] = Field(
        256 << 20, description="Sum of the images that may be parked in Redis at one time."
    )
    blob_ttl_seconds: Annotated[int, Field(ge=60)] = Field(
        86_400, description="How long an image is parked in Redis once no chunk waits for it."
    )
    result_ttl_seconds: Annotated[int, Field(ge=1)] = Field(
        86_400, description="How long records stay in Redis after their job has ended."
    )


class WorkerSettings(BaseModel):
    """Worker: what it runs, how much of it, and how long it waits."""

    queues: StrList = Field(
        default_factory=lambda: ["default"], description="Pools whose queues this worker serves (both lanes)."
    )
    models: StrList = Field(
        default_factory=list,
        description="Models to load at start; empty means all that the repository holds.",
    )
    model_repository: str = Field(
        default_factory=default_model_repository, description="Folder or `s3://` prefix of the models."
    )
    lazy_models: StrList = Field(
        default_factory=list,
        description="Those of them (`name` or `name@version`, or `*`) that are loaded at their first use.",
    )
    model_poll_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0,
        description="How often a worker looks for new and removed versions in the repository; 0: at SIGHUP alone.",
    )
    models_memory_bytes: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Memory of all models of a worker: above it the least recently used ones are unloaded; 0 is no "
        "limit.",
    )
    canary: CanaryMap = Field(
        default_factory=dict,
        description="Versions that new jobs are spread over, with their weights: `imagenet=1:95,2:5`. The same for "
        "all workers.",
    )
    shadow: ShadowMap = Field(
        default_factory=dict,
        description="Version that also runs on so many percent of a model's images, while the device is idle, to be "
        "compared: `imagenet=2:10`. Its answers are returned to nobody.",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="`auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`."
    )
    chunks_in_flight: Annotated[int, Field(ge=2, le=1024)] = Field(
        32, description="Chunks that one worker works on at a time."
    )
    chunks_waiting: Annotated[int, Field(ge=0, le=4096)] = Field(
        128,
        description="Chunks beside those, all of whose images are done or wait for a stranger's slow server. With "
        "2 % of such images: 22 (and 30 of `fetch_slow_concurrency`) at 100 images/s, 89 (and 120) at 400, 446 (and "
        "600) at 2,000; a quarter more leaves room for chance.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Of the arithmetic in the models: `fp32` answers within 1e-4 of the file as it came; `auto` also "
        "takes what gives equal answers on real photos and is faster.",
    )
    tune_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0, description="Time for finding the fastest way to run a model at its first start; 0 does without."
    )
    tuning_cache: str | None = Field(
        None,
        description="Folder that keeps what tuning found and compiled. Not set: `.tuning` in the model repository.",
    )
    max_forward_seconds: Annotated[float, Field(gt=0)] = Field(
        0.25, description="Of one forward pass: tuning chooses no batch size that takes longer."
    )
    max_batch: Annotated[int, Field(ge=1, le=4096)] = Field(32, description="Images in one forward pass, at most.")
    decode_threads: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="Threads that decode; 0 means what tuning found, else one per core that the process may use."
    )
    decoded_in_flight: Annotated[int, Field(ge=1)] = Field(
        256, description="Decoded images that wait for the device, at most."
    )
    content_cache: StrList = Field(
        default_factory=list,
        description="Models (`name` or `name@version`, or `*`) whose answers are kept by the picture's content, so "
        "that a re-upload is neither decoded nor classified. Empty: none.",
    )
    content_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        256 << 20,
        description="Memory of one worker for them: an answer takes 4 bytes a class and 236 more. The least recently "
        "used go first.",
    )
    content_cache_url: str | None = Field(
        None,
        repr=False,
        description="A Redis that workers share their content caches through; not the ledger's, since it should evict "
        "(`allkeys-lru`). While it is away pictures are classified without it.",
    )
    content_cache_ttl_seconds: Annotated[int, Field(ge=1)] = Field(
        604_800, description="How long an answer stays in that Redis (7 days)."
    )
    lease_seconds: Annotated[float, Field(ge=1)] = Field(
        60.0, description="A chunk whose worker is silent for so long is given to another."
    )
    decode_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0,
        description="Decoding of one image, at most; then it has the error `internal`, and another thread takes the "
        "place of its.",
    )
    chunk_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        900.0, description="One chunk at work, at most; then it is handed back to the queue."
    )
    stuck_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0, description="A forward pass, or a loop of the worker, that stands still for so long makes /livez fail."
    )
    model_load_seconds: Annotated[float, Field(gt=0)] = Field(
        1800.0, description="Loading and warming of one model, at most; then the worker ends."
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0,
        description="From SIGTERM on a worker finishes what is at work for so long, and then hands back the rest; "
        "give Kubernetes' grace period 30 s more.",
    )
    keep_results_seconds: Annotated[float, Field(ge=1)] = Field(
        900.0,
        description="How long a worker keeps finished records while Redis or the sink is away; then their chunk is "
        "handed back.",
    )
    sink_patience_seconds: Annotated[float, Field(ge=0)] = Field(
        86_400.0,
        description="A sink that has taken no records of a job for so long is given up: images that are done from "
        "then on, and that it does not take either, get `internal` in Redis and become dead letters.",
    )
    max_rss_bytes: Annotated[int, Field(ge=0)] = Field(
        0,
        description="A worker with more memory than this drains and exits with 3. 0: 90 % of the cgroup's limit, "
        "where there is one.",
    )
    dead_letter_ttl_seconds: Annotated[int, Field(ge=60)] = Field(
        1_209_600, description="How long dead letters, and the images parked in Redis for them, are kept (14 days)."
    )
    dead_letters_max: Annotated[int, Field(ge=1)] = Field(
        100_000, description="Dead letters that are kept; the oldest go first."
    )
    objective_seconds: IntMap = Field(
        default_factory=dict,
        description="How long an image may wait before the alerts call its queue late, as `interactive=n,bulk=n` or "
        "by the queue's name; for the exporter. Those not named: interactive=60, bulk=3600.",
    )
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="Port of /metrics, /livez and /readyz. Not set: the first free one from 9464 on."
    )
    http_host: str = Field("127.0.0.1", description="Address that /metrics, /livez and /readyz listen on.")


class IngestSettings(BaseModel):
    """Worker: what it may read, decode and write."""

    file_roots: StrList = Field(
        default_factory=list, description="Folders below which `file://` references may be read."
    )
    source_allow: StrList = Field(
        default_factory=list, description="`s3://bucket/prefix` that may be read; empty means every bucket."
    )
    sink_allow: StrList = Field(
        default_factory=list,
        description="`s3://…` or `file://…` prefixes that jobs may write to; empty means none.",
    )
    http_allow: StrList = Field(
        default_factory=list,
        description="`host:port`, `*.domain:port` or `CIDR:port` exceptions to the rule that only public addresses "
        "are fetched, from `http_ports`.",
    )
    http_deny: StrList = Field(
        default_factory=list,
        description="Hosts, `*.domain`s, addresses and CIDRs that are never fetched from, whatever is allowed.",
    )
    http_ports: IntList = Field(
        default_factory=lambda: [80, 443], description="Ports of public addresses that are fetched from."
    )
    max_bytes: Annotated[int, Field(ge=1)] = Field(20 << 20, description="Bytes of one image, at most.")
    max_pixels: Annotated[int, Field(ge=1)] = Field(
        50_000_000,
        description="Pixels of one image, at most; twice as many are decoded at one time, by all threads together "
        "(photos of ordinary sizes are not counted).",
    )
    truncated: Literal["strict", "lenient"] = Field(
        "strict",
        description="A truncated image is an error, or (JPEG alone) is decoded as far as it goes; so is a progressive "
        "JPEG that is damaged.",
    )
    decode_exact: bool = Field(
        True,
        description="Decode JPEGs in full. Where nobody hostile writes them, false scales large ones while they are "
        "decoded (to no less than 3.5 times what the model sees), in two thirds of the time; a hostile one can then "
        "hide any picture from people, or from the model.",
    )
    decode_isolation: Literal["never", "suspect", "always"] = Field(
        "suspect",
        description="Decode in processes of their own: the images of a chunk that killed two workers, or all.",
    )
    sandbox_memory_bytes: Annotated[int, Field(ge=64 << 20)] = Field(
        2 << 30, description="Memory that such a process may take for one image."
    )
    sandbox_seconds: Annotated[float, Field(gt=0)] = Field(
        10.0, description="Time that it may take for one image: of a core, and on the clock."
    )
    fetch_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        15.0, description="From the first connection to the last byte of one image."
    )
    fetch_concurrency: Annotated[int, Field(ge=1)] = Field(128, description="Images fetched at one time.")
    fetch_slow_concurrency: Annotated[int, Field(ge=0)] = Field(
        256, description="Beside them, images that have been at it for more than a second."
    )
    fetch_host_concurrency: Annotated[int, Field(ge=1)] = Field(
        32, description="Requests to one http(s) host at one time."
    )
    fetch_max_total_bytes: Annotated[int, Field(ge=1)] = Field(
        512 << 20,
        description="Bytes of all images that are being fetched or wait to be decoded (two of `max_bytes` at least).",
    )
    s3_endpoint_url: str | None = Field(None, description="Object store other than AWS: its URL.")
    s3_path_style: bool = Field(False, description="Address buckets by path (`host/bucket/key`).")
    s3_client: Literal["auto", "boto3"] = Field(
        "auto", description="What reads images from S3: `auto` is obstore, with boto3 for what it cannot read."
    )


class OutputSettings(BaseModel):
    """Output: what processes say."""

    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is readable on a terminal and JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
