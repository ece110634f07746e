"""Every metric of a worker, declared once. Base units; labels of low cardinality only.

`docs/metrics.md` is generated from this module.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from classifleet.config import CODES

# It would be a second series for each counter and histogram, which Prometheus has no use for.
disable_created_metrics()  # type: ignore[no-untyped-call]
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
    "Answers of one model to one image, by outcome (`ok` or an error code); `unknown` is any model that is not here.",
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
    "Forward passes by why they had their size: `full`, `memory` (the device's memory was short for more), `lane` "
    "(bulk was not to delay interactive), `drained` (nothing more waited), `bisected` (a part of one that failed), "
    "`spare` (a comparison, while nothing waited).",
    ["model", "reason"],
    registry=REGISTRY,
)
MAX_BATCH: Final = Gauge(
    "classifleet_max_batch_images",
    "Images per forward pass, at most; halved when the device's memory is short.",
    ["model"],
    registry=REGISTRY,
)
PADDED_IMAGES: Final = Counter(
    "classifleet_padded_images_total",
    "Empty images that batches were filled up with, where a backend wants few sizes.",
    ["model"],
    registry=REGISTRY,
)
DROPPED_IMAGES: Final = Counter(
    "classifleet_dropped_images_total",
    "Images that waited for the device and were not run: their `deadline` had passed, or they were `abandoned`.",
    ["model", "reason"],
    registry=REGISTRY,
)
DEVICE_SECONDS: Final = Counter(
    "classifleet_device_seconds_total", "Time that the device has spent on a model.", ["model"], registry=REGISTRY
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
    "Wake-up calls by what the ledger said: `run`, `expired`, or why there was nothing to do; `garbage` for others. "
    "Parked afterwards: `not_understood`, or `elsewhere` (another worker has its models).",
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
    "Chunks that went back to the queue unfinished, by why: `drain`, `timeout`, `sink`, `ledger`, `gate`, "
    "`models`, `defect`.",
    ["reason"],
    registry=REGISTRY,
)
DEPENDENCY_UP: Final = Gauge(
    "classifleet_dependency_up",
    "0 while a thing that the worker needs (`broker`, `ledger`, `replicas`, `sink`) is away.",
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
MODELS: Final = Gauge(
    "classifleet_models",
    "Models of a worker by how far they are: `waiting`, `loading`, `warming`, `ready`, `lazy` (loaded when it is "
    "asked for) or `failed`.",
    ["state"],
    registry=REGISTRY,
)
MODEL_LOAD_FAILURES: Final = Counter(
    "classifleet_model_load_failures_total",
    "Models that a running worker could not load; the log says why.",
    ["model"],
    registry=REGISTRY,
)
MODEL_EVICTIONS: Final = Counter(
    "classifleet_model_evictions_total",
    "Models that were unloaded to make room for others (`models_memory_bytes`).",
    ["model"],
    registry=REGISTRY,
)
MODEL_BYTES: Final = Gauge(
    "classifleet_model_bytes", "Memory that a loaded model takes, about.", ["model"], registry=REGISTRY
)
SHADOW: Final = Counter(
    "classifleet_shadow_total",
    "Images that a shadow version was to be compared on: its first class was the same (`agree`) or not (`disagree`), "
    "it `failed`, or it was `dropped` because the device had no time to spare.",
    ["model", "outcome"],
    registry=REGISTRY,
)
SHADOW_DIFFERENCE: Final = Histogram(
    "classifleet_shadow_difference",
    "Largest difference of a class' confidence between a shadow version and the one that answered.",
    ["model"],
    buckets=(0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
    registry=REGISTRY,
)
MODEL_INFO: Final = Gauge(
    "classifleet_model_info",
    "1 for each loaded model, with how it runs: `speedup` is by the file as it came, `agreement` the share of equal "
    "answers to decided pictures; both empty where nothing was compared.",
    ["model", "digest", "backend", "device", "speedup", "agreement"],
    registry=REGISTRY,
)
CACHE: Final = Counter(
    "classifleet_cache_total",
    "Images that a model with a content cache was asked about: `hit` in memory, `remote` in the shared Redis, "
    "`shared` with one of the same content that was at work, or `miss`.",
    ["model", "outcome"],
    registry=REGISTRY,
)
CACHE_BYTES: Final = Gauge("classifleet_cache_bytes", "What the content cache holds in memory.", registry=REGISTRY)
CACHE_FAILURES: Final = Counter(
    "classifleet_cache_failures_total",
    "Round trips to the shared content cache that failed; each is followed by a rest of 5 s.",
    registry=REGISTRY,
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
WORKERS: Final = Gauge(
    "classifleet_workers", "Exporter: workers that live and serve a pool's queues.", ["pool"], registry=REGISTRY
)
QUEUE_OBJECTIVE: Final = Gauge(
    "classifleet_queue_objective_seconds",
    "Exporter: how long an image may wait before its queue is late (the setting `objective_seconds`).",
    ["queue"],
    registry=REGISTRY,
)
LEDGER_MEMORY_USED: Final = Gauge(
    "classifleet_ledger_memory_used_bytes", "Exporter: what the ledger's Redis holds.", registry=REGISTRY
)
LEDGER_MEMORY_RESERVED: Final = Gauge(
    "classifleet_ledger_memory_reserved_bytes",
    "Exporter: what the records of accepted images will take in Redis beside that.",
    registry=REGISTRY,
)
LEDGER_MEMORY_MAX: Final = Gauge(
    "classifleet_ledger_memory_max_bytes",
    "Exporter: the `maxmemory` of the ledger's Redis; 0 if it has none.",
    registry=REGISTRY,
)
DEAD_LETTERS_KEPT: Final = Gauge(
    "classifleet_dead_letters_kept", "Exporter: dead letters that can be looked at and tried again.", registry=REGISTRY
)

# There from the start, because Prometheus does not see the rise of a counter that begins at one.
for _code, _spec in CODES.items():
    if _spec.dead_letter:
        DEAD_LETTERS.labels(_code.value)
for _reason in ("drain", "timeout", "sink", "ledger", "gate", "models", "defect"):
    HANDED_BACK.labels(_reason)


def observe(histogram: Histogram, seconds: float, trace_id: str = "") -> None:
    """Observe a value; with a trace's id, OpenMetrics shows that trace as an example of its bucket."""
    histogram.observe(seconds, {"trace_id": trace_id} if trace_id else None)
