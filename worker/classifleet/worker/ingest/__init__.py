"""From a reference to the bytes of an image: nothing is fetched that the operator's settings do not cover."""

from classifleet.worker.ingest.address import AddressPolicy, forbidden_reason
from classifleet.worker.ingest.sources import Fetcher

__all__ = ["AddressPolicy", "Fetcher", "forbidden_reason"]
