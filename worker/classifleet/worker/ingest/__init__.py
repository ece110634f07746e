"""From a reference to the bytes of an image: nothing is fetched that the operator's settings do not cover."""

from classifleet.worker.ingest.address import forbidden_reason
from classifleet.worker.ingest.fetch import Fetch
from classifleet.worker.ingest.memory import ImageMemory, image_memory
from classifleet.worker.ingest.policy import AddressPolicy
from classifleet.worker.ingest.sources import Fetcher, require_sources

__all__ = ["AddressPolicy", "Fetch", "Fetcher", "ImageMemory", "forbidden_reason", "image_memory", "require_sources"]
