"""What a message costs: our transport against kombu's own, side by side, with a task that does nothing.

python benchmarks/transport.py [messages]     5000 by default; on an embedded Redis

Client commands are counted by the server, without those that scripts call. CPU is the worker process's, all threads.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import redis

from classifleet.config import Keys, Settings, message
from classifleet.config.celery_app import Publisher
from classifleet.producer.embedded import embedded_redis

BULK, INTERACTIVE = "classify.default.bulk", "classify.default.interactive"
SENT = (
    *("brpop", "blmove", "eval", "evalsha", "multi", "exec", "ping", "hello", "client"),
    *("zadd", "hset", "zrem", "hdel", "zrange", "set"),
)
INSIDE = ("zadd", "hset", "zrem", "hdel")  # what our script calls, too
WORKER = """
import sys, warnings
from celery.exceptions import SecurityWarning
warnings.simplefilter("ignore", SecurityWarning)
from classifleet.config import Settings
from classifleet.config.celery_app import make_app
from classifleet.config.payload import TASK_NAME
from classifleet.worker import transport
settings = Settings.load()
app = make_app(settings)
transport.install(app, settings)
def classify(**_): pass
app.task(name=TASK_NAME, ignore_result=True)(classify)
app.Worker(pool="threads", concurrency=32, without_gossip=True, without_mingle=True, without_heartbeat=True,
           quiet=True, loglevel="WARNING").start()
"""


def main(messages: int) -> None:
    """Print one line a transport."""
    print(f"{messages} messages, a worker with 32 threads")
    print("transport  messages/s  CPU us/message  commands/message  idle commands/s  latency ms p50  p95")
    for transport in ("stock", "atomic"):
        with embedded_redis() as url:
            measure(transport, url, messages)


def measure(transport: str, url: str, messages: int) -> None:
    """One worker on an empty Redis."""
    settings = Settings.load(broker_url=url, transport=transport)
    publisher, client = Publisher(settings), redis.Redis.from_url(url)
    environment = os.environ | {"CLASSIFLEET_BROKER_URL": url, "CLASSIFLEET_TRANSPORT": transport}
    with subprocess.Popen([sys.executable, "-c", WORKER], env=environment) as worker:
        try:
            publisher.publish([(BULK, message("warm", "0"))])
            while not settled(client, settings):
                if worker.poll() is not None:
                    sys.exit("the worker ended")
                time.sleep(0.05)
            serve(publisher, client, settings, 200)
            sent, used, began = commands(client, transport), cpu_seconds(worker.pid), time.perf_counter()
            serve(publisher, client, settings, messages)
            seconds = time.perf_counter() - began
            used, sent = cpu_seconds(worker.pid) - used, commands(client, transport) - sent
            idle, began = commands(client, transport), time.perf_counter()
            time.sleep(10)
            idle_rate = (commands(client, transport) - idle) / (time.perf_counter() - began)
            times = sorted(latency(publisher, client, settings) for _ in range(100))
            print(
                f"{transport:9}  {messages / seconds:10.0f}  {used / messages * 1e6:14.0f}  {sent / messages:16.2f}  "
                f"{idle_rate:15.1f}  {statistics.median(times) * 1e3:14.1f}  {times[94] * 1e3:3.1f}"
            )
        finally:
            worker.terminate()
    publisher.close()
    client.close()


def serve(publisher: Publisher, client: redis.Redis, settings: Settings, messages: int) -> None:
    """Publish, and wait until all are acknowledged."""
    publisher.publish([(BULK, message("j", str(number))) for number in range(messages)])
    while not settled(client, settings):
        time.sleep(0.005)


def settled(client: redis.Redis, settings: Settings) -> bool:
    """Nothing waits and nothing is held."""
    prefix = Keys(settings.namespace).broker
    names = (BULK, INTERACTIVE, f"{BULK}:woken", f"{INTERACTIVE}:woken", "unacked", "reserved")
    return not client.exists(*(prefix + name for name in names))


def latency(publisher: Publisher, client: redis.Redis, settings: Settings) -> float:
    """Seconds from before the publication to the acknowledgement of one message, on an idle worker."""
    time.sleep(0.02)
    began = time.perf_counter()
    publisher.publish([(INTERACTIVE, message("j", "0"))])
    while not settled(client, settings):
        pass
    return time.perf_counter() - began


def commands(client: redis.Redis, transport: str) -> int:
    """Commands that clients sent, without ours."""
    stats = client.info("commandstats")
    names = [name for name in SENT if transport == "stock" or name not in INSIDE]
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in names)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
