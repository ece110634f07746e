"""What our transport relies on inside kombu, by digest of its source. A change there must be read before it is used.

To renew after reading: `.venv/bin/python -m tests.unit.test_transport_internals` prints the table.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import requires, version
from typing import Any

import pytest
from kombu import Connection
from kombu.asynchronous.hub import Hub
from kombu.transport import redis as stock
from kombu.transport import virtual

from classifleet.worker.transport import channel as ours

# What is replaced, and what is called or stands in for a promise that the rest of kombu and Celery rely on.
DIGESTS = {
    "transport.redis.Channel.__init__": "f189bdebe2436ccd",
    "transport.redis.Channel.basic_consume": "34e0da85e689ff98",
    "transport.redis.Channel.basic_cancel": "d2e3a03a48d2a52a",
    "transport.redis.Channel._basic_cancel": "f799ede5037500a9",
    "transport.redis.Channel._on_connection_disconnect": "9eab3394f78b076c",
    "transport.redis.Channel.close": "101e9b9cdad44b88",
    "transport.redis.Channel._get_pool": "d6e689f654ffec44",
    "transport.redis.Channel._connparams": "e9a4295085a8fb90",
    "transport.redis.Channel._disconnect_pools": "db50da048a22b16d",
    "transport.redis.Channel._size": "7cc839b42fdc5e3b",
    "transport.redis.Channel._put": "1c0cf9749576614c",
    "transport.redis.Channel._purge": "221e37da7c172561",
    "transport.redis.QoS.append": "35c655f6ecc62fe6",
    "transport.redis.QoS.ack": "1bc15a4ddf541af6",
    "transport.redis.QoS.reject": "747a02434344d1a6",
    "transport.redis.QoS.restore_unacked": "8954efef014d546e",
    "transport.redis.QoS.restore_visible": "d4a4a40a3eaf9f23",
    "transport.redis.Transport.__init__": "4fc30e8fa54df374",
    "transport.redis.Transport.register_with_event_loop": "4b835642e4a99425",
    "transport.redis.MultiChannelPoller.add": "a88fcd53d00f18a8",
    "transport.redis.MultiChannelPoller.discard": "07516a1a571dda58",
    "transport.redis.MultiChannelPoller.close": "ff21d2c7108935fb",
    "transport.redis.MultiChannelPoller.get": "e0f960e0c3288d3f",
    "transport.redis.MultiChannelPoller.on_poll_start": "414f76caaa675bc0",
    "transport.virtual.base.Channel.__init__": "23f2698043e10a95",
    "transport.virtual.base.Channel.basic_consume": "0fec962694938b61",
    "transport.virtual.base.Channel.basic_cancel": "1beb5cf96c9a2cb4",
    "transport.virtual.base.Channel.basic_ack": "3b4278c757b44675",
    "transport.virtual.base.Channel.basic_reject": "d49bbd211da77d0d",
    "transport.virtual.base.Channel.basic_get": "ba4884c15b6bed6d",
    "transport.virtual.base.Channel.close": "26368e1cadfc4ff9",
    "transport.virtual.base.QoS.__init__": "86388d33d7d6fb40",
    "transport.virtual.base.QoS.append": "b388f0cd6485c28a",
    "transport.virtual.base.QoS.ack": "0714292b916fecb2",
    "transport.virtual.base.QoS.reject": "ae08291027f37509",
    "transport.virtual.base.QoS.restore_unacked": "42decbef03d576d3",
    "transport.virtual.base.QoS.restore_unacked_once": "c81f3d0fb29b9599",
    "transport.virtual.base.QoS.can_consume": "787f80092f8d7e51",
    "transport.virtual.base.Message.__init__": "c90d08ccfa2e3e9a",
    "transport.virtual.base.Transport.__init__": "15c3eeb81a7640c4",
    "transport.virtual.base.Transport._deliver": "799e242f3ec53863",
    "transport.virtual.base.Transport.drain_events": "dc55900aa0d2f4e8",
    "transport.virtual.base.Transport.close_connection": "e16eb2eabe26623d",
    "transport.virtual.base.Transport.close_channel": "dc17d64611ab66b9",
    "connection.Connection.get_transport_cls": "6c439e6b97590bc9",
    "connection.Connection._close": "609b0d2fc2246a20",
    "connection.Connection.collect": "36d622aa0b69908a",
    "asynchronous.hub.Hub.call_soon": "ec0433083ce8db41",
    "asynchronous.hub.Hub.create_loop": "bc5b3f9d66b99d45",
    "asynchronous.hub.Hub.add_reader": "e2ebad46b5d3fc55",
    "asynchronous.hub.Hub.remove": "bb61e1f6240ae829",
    "asynchronous.hub.Hub.call_repeatedly": "66fb9262b1eee570",
}

PARTS: dict[str, Any] = {
    f"{owner.__module__.removeprefix('kombu.')}.{owner.__qualname__}.{name}": inspect.getattr_static(owner, name)
    for owner, names in {
        stock.Channel: (
            "__init__", "basic_consume", "basic_cancel", "_basic_cancel", "_on_connection_disconnect", "close",
            "_get_pool", "_connparams", "_disconnect_pools", "_size", "_put", "_purge",
        ),
        stock.QoS: ("append", "ack", "reject", "restore_unacked", "restore_visible"),
        stock.Transport: ("__init__", "register_with_event_loop"),
        stock.MultiChannelPoller: ("add", "discard", "close", "get", "on_poll_start"),
        virtual.Channel: (
            "__init__", "basic_consume", "basic_cancel", "basic_ack", "basic_reject", "basic_get", "close",
        ),
        virtual.QoS: ("__init__", "append", "ack", "reject", "restore_unacked", "restore_unacked_once", "can_consume"),
        virtual.Message: ("__init__",),
        virtual.Transport: ("__init__", "_deliver", "drain_events", "close_connection", "close_channel"),
        Connection: ("get_transport_cls", "_close", "collect"),
        Hub: ("call_soon", "create_loop", "add_reader", "remove", "call_repeatedly"),
    }.items()
    for name in names
}  # fmt: skip


def digest(part: Any) -> str:
    return hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PARTS)
def test_kombu_is_as_it_was_when_the_transport_was_written(name: str) -> None:
    assert digest(PARTS[name]) == DIGESTS[name], (
        f"{name} of kombu {version('kombu')} is not what the transport was written against: read the change, adapt "
        "worker/classifleet/worker/transport, run tests/integration/test_transport*.py, and renew the digest"
    )


def test_a_worker_installs_exactly_this_kombu() -> None:
    pins = [each for each in requires("classifleet") or () if each.startswith("kombu==")]
    assert {pin.partition(";")[0].strip() for pin in pins} == {f"kombu=={version('kombu')}"}


def test_what_is_replaced_exists() -> None:
    for own, kombus in ((ours.Channel, stock.Channel), (ours.QoS, virtual.QoS), (ours.Transport, stock.Transport)):
        added = {"reserver", "update", "_deliver", "delivered", "_slots", "waiting"}
        for name in set(vars(own)) - set(dir(object)) - added:
            assert hasattr(kombus, name), f"{own.__name__}.{name} replaces nothing"


if __name__ == "__main__":
    for name, part in PARTS.items():
        print(f'    "{name}": "{digest(part)}",')
