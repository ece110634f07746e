"""Every metric of a worker, declared once. Base units; labels of low cardinality only.

`docs/metrics.md` is generated from this module.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY: Final = CollectorRegistry()

STAGE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
WAIT_BUCKETS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

IMAGES: Final = Counter(
    "classifleet_images_total",
    "Images with a committed record, by outcome (`ok`, `partial` or an error code).",
    ["queue", "outcome"],
    registry=REGISTRY,
)
CLASSIFICATIONS: Final = Counter(
    "classifleet_classifications_total",
    "Answers of one model to one image, by outcome (`ok` or an error code).",
    ["model", "outcome"],
    registry=REGISTRY,
)
QUEUE_WAIT: Final = Histogram(
    "classifleet_queue_wait_seconds",
    "From the ledger's entry of a chunk to its begin.",
    ["queue"],
    buckets=WAIT_BUCKETS,
    registry=REGISTRY,
)
STAGE_DURATION: Final = Histogram(
    "classifleet_stage_duration_seconds",
    "Time of an image in `fetch`, `decode`, `batch_wait` or `forward`, or of a chunk in `sink` or `commit`.",
    ["stage"],
    buckets=STAGE_BUCKETS,
    registry=REGISTRY,
)
BATCH_SIZE: Final = Histogram(
    "classifleet_batch_size", "Images per forward pass.", ["model"], buckets=SIZE_BUCKETS, registry=REGISTRY
)
BATCHES: Final = Counter(
    "classifleet_batches_total",
    "Forward passes by why they had their size (`full`, `drained`, `bisected`).",
    ["model", "reason"],
    registry=REGISTRY,
)
LAST_BATCH: Final = Gauge(
    "classifleet_last_batch_timestamp_seconds", "When the last forward pass ended, as Unix time.", registry=REGISTRY
)
INFLIGHT: Final = Gauge("classifleet_inflight_images", "Images of chunks that are at work.", registry=REGISTRY)
WAITING_CHUNKS: Final = Gauge(
    "classifleet_waiting_chunks",
    "Chunks of which nothing is left but slow fetches; they are not counted among `chunks_in_flight`.",
    ["lane"],
    registry=REGISTRY,
)
CHUNKS: Final = Counter(
    "classifleet_chunks_total",
    "Wake-up calls by what the ledger said: `run`, `expired`, or why there was nothing to do; `garbage` for others.",
    ["outcome"],
    registry=REGISTRY,
)
DUPLICATES: Final = Counter(
    "classifleet_duplicates_total", "Commits that lost because another attempt had won.", registry=REGISTRY
)
DEAD_LETTERS: Final = Counter(
    "classifleet_dead_letters_total",
    "Images that were kept as dead letters, by error code.",
    ["code"],
    registry=REGISTRY,
)
HANDED_BACK: Final = Counter(
    "classifleet_handed_back_total",
    "Chunks that went back to the queue unfinished, by why: `drain`, `timeout`, `sink`, `ledger`, `gate`, `defect`.",
    ["reason"],
    registry=REGISTRY,
)
DEPENDENCY_UP: Final = Gauge(
    "classifleet_dependency_up",
    "0 while a thing that the worker needs (`broker`, `ledger`, `sink`) is away.",
    ["dependency"],
    registry=REGISTRY,
)
REDELIVERIES: Final = Counter(
    "classifleet_redeliveries_total",
    "Chunks published again: their worker fell silent, or the broker lost the message.",
    registry=REGISTRY,
)
MODEL_LOAD: Final = Histogram(
    "classifleet_model_load_seconds",
    "Loading and warming of one model.",
    ["model"],
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
    registry=REGISTRY,
)
MODEL_INFO: Final = Gauge(
    "classifleet_model_info", "1 for each loaded model.", ["model", "digest", "backend", "device"], registry=REGISTRY
)
FETCH_SLOTS: Final = Gauge(
    "classifleet_fetch_slots",
    "Fetches at work: `fast`, or `slow` when they have taken longer than a second.",
    ["lane"],
    registry=REGISTRY,
)
FETCHED_BYTES: Final = Gauge(
    "classifleet_fetched_bytes", "Bytes of images that are being fetched, or wait to be decoded.", registry=REGISTRY
)
FETCH_CONNECTIONS: Final = Gauge(
    "classifleet_fetch_connections", "Sockets to http(s) servers that are open, idle ones included.", registry=REGISTRY
)
FETCH_EVICTIONS: Final = Counter(
    "classifleet_fetch_evictions_total", "Slow fetches that were cut because memory was short.", registry=REGISTRY
)
FETCH_RETRIES: Final = Counter(
    "classifleet_fetch_retries_total", "Requests that were repeated after a transient failure.", registry=REGISTRY
)
FETCH_HOST_WAITS: Final = Counter(
    "classifleet_fetch_host_waits_total",
    "Fetches that waited because their host had as many as it gets at one time.",
    registry=REGISTRY,
)
FETCH_CIRCUITS_OPEN: Final = Gauge(
    "classifleet_fetch_circuits_open", "Hosts that are left alone because they kept failing.", registry=REGISTRY
)
FETCH_CIRCUITS_OPENED: Final = Counter(
    "classifleet_fetch_circuits_opened_total",
    "How often a host that kept failing was given a rest.",
    registry=REGISTRY,
)
FETCH_REFUSALS: Final = Counter(
    "classifleet_fetch_circuit_refusals_total",
    "Fetches refused because their host's circuit was open.",
    registry=REGISTRY,
)
OUTSTANDING_IMAGES: Final = Gauge(
    "classifleet_outstanding_images",
    "Exporter: accepted images without a record (`queued`, `leased`, or `parked`: not understood by any worker yet).",
    ["queue", "state"],
    registry=REGISTRY,
)
OUTSTANDING_CHUNKS: Final = Gauge(
    "classifleet_outstanding_chunks",
    "Exporter: chunks of the outstanding images.",
    ["queue", "state"],
    registry=REGISTRY,
)
QUEUE_OLDEST: Final = Gauge(
    "classifleet_queue_oldest_age_seconds", "Exporter: age of the oldest queued chunk.", ["queue"], registry=REGISTRY
)
QUEUE_RATE: Final = Gauge(
    "classifleet_queue_images_per_second",
    "Exporter: images `accepted` and `done`, over the last minute.",
    ["queue", "what"],
    registry=REGISTRY,
)
QUEUE_DRAIN: Final = Gauge(
    "classifleet_queue_drain_seconds",
    "Exporter: how long the outstanding images take at the last minute's rate; infinite if nothing is done.",
    ["queue"],
    registry=REGISTRY,
)
DEAD_LETTERS_KEPT: Final = Gauge(
    "classifleet_dead_letters_kept", "Exporter: dead letters that can be looked at and tried again.", registry=REGISTRY
)
