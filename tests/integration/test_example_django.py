"""examples/django: with a fleet in memory, and with a real one, before and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifleet.producer import BrokerUnavailable, ErrorCode, Fleet, LedgerUnavailable
from classifleet.producer.testing import InMemoryFleet
from tests.fixtures_fleet import LiveFleet

django = pytest.importorskip("django")

PROJECT = Path(__file__).parents[2] / "examples" / "django"
URL = "https://example.com/tom.jpg"
CAT = {"tabby": 0.9, "lynx": 0.1}
SECONDS = 60.0


@pytest.fixture(scope="module")
def project() -> Iterator[None]:
    """The project in this process, on a database in memory."""
    from django.conf import settings
    from django.core.management import call_command

    assert not settings.configured, "another test has configured Django in this process, which can be done once"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT))
        patch.setenv("DJANGO_SETTINGS_MODULE", "project.settings")
        patch.setenv("EXAMPLE_DATABASE", ":memory:")
        django.setup()
        call_command("check", fail_level="WARNING")
        call_command("migrate", verbosity=0)
        yield


@pytest.fixture
def client(project: None) -> Any:
    from django.test import Client
    from pictures.models import Picture

    Picture.objects.all().delete()
    return Client()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, client: Any) -> Any:
    """use(fleet): the application's fleet is this one."""
    from pictures import fleets

    def put(fleet: Fleet) -> None:
        monkeypatch.setattr(fleets, "get_fleet", lambda: fleet)

    return put


def post(client: Any, url: Any = URL) -> Any:
    return client.post("/pictures", {"url": url}, content_type="application/json")


def test_no_migration_is_missing(project: None) -> None:
    from django.core.management import call_command

    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_a_picture(client: Any, use: Any) -> None:
    with InMemoryFleet({URL: CAT}, paused=True) as fleet:
        use(fleet)
        added = post(client)
        assert (added.status_code, added.json()["status"]) == (202, "pending")
        assert [image.id for image in fleet.submitted] == [added.json()["id"]]
        assert client.get(added["Location"]).json()["status"] == "pending"
        fleet.run_pending()
        shown = client.get(added["Location"], {"wait": 5}).json()
    assert (shown["status"], shown["error"]) == ("done", "")
    assert shown["labels"] == {"imagenet@1": CAT, "nsfw@1": CAT}
    assert client.get(added["Location"]).json() == shown  # from the row: the fleet is closed


def test_a_picture_that_cannot_be_classified(client: Any, use: Any) -> None:
    use(InMemoryFleet({URL: ErrorCode.NOT_FOUND}))
    shown = client.get(post(client)["Location"]).json()
    assert (shown["status"], shown["error"], shown["labels"]) == ("failed", "not_found", {})


def test_a_transaction_that_is_rolled_back_enqueues_nothing(client: Any, use: Any) -> None:
    from django.db import transaction
    from pictures import fleets
    from pictures.models import Picture

    fleet = InMemoryFleet({URL: CAT})
    use(fleet)

    @transaction.atomic
    def add_and_fail() -> None:
        fleets.add(URL)
        assert Picture.objects.count() == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail()
    assert (Picture.objects.count(), fleet.submitted) == (0, [])


def test_nothing_is_enqueued_before_the_commit(client: Any, use: Any) -> None:
    from django.db import transaction
    from pictures import fleets

    fleet = InMemoryFleet({URL: CAT})
    use(fleet)
    with transaction.atomic():
        picture = fleets.add(URL)
        assert fleet.submitted == []
    assert [image.id for image in fleet.submitted] == [picture.id]


def test_enqueuing_again_is_harmless(client: Any, use: Any) -> None:
    from pictures import fleets

    fleet = InMemoryFleet({URL: CAT}, paused=True)
    use(fleet)
    picture = fleets.add(URL)
    fleets.enqueue(picture)
    fleet.run_pending()
    fleets.enqueue(picture)
    fleets.refresh(picture)
    assert (len(fleet.submitted), picture.status) == (1, "done")


@pytest.mark.parametrize("away", [LedgerUnavailable, BrokerUnavailable])
def test_a_broker_that_is_down_loses_nothing(
    client: Any, use: Any, away: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from django.core.management import call_command

    fleet = InMemoryFleet({URL: CAT}, paused=True)
    use(fleet)
    with fleet.unavailable(away):
        added = post(client)
        assert added.status_code == 202
        assert client.get(added["Location"]).json()["status"] == "pending"
    assert "not enqueued yet" in caplog.text
    call_command("refresh_pictures")
    assert len(fleet.submitted) == 1
    fleet.run_pending()
    call_command("refresh_pictures")
    assert capsys.readouterr().out.splitlines() == ["1 pictures are pending", "0 pictures are pending"]
    assert client.get(added["Location"]).json()["status"] == "done"


def test_a_fleet_at_its_limit_refuses(client: Any, use: Any) -> None:
    from pictures.models import Picture

    fleet = InMemoryFleet({URL: CAT}, paused=True, max_queued_images={"interactive": 1})
    use(fleet)
    assert post(client).status_code == 202
    refused = post(client)
    assert (refused.status_code, refused["Retry-After"]) == (503, "60")
    assert "MAX_QUEUED_IMAGES" in refused.json()["error"]
    assert Picture.objects.count() == 1
    fleet.run_pending()
    assert post(client).status_code == 202


def test_an_answer_that_nobody_fetched_in_time(client: Any, use: Any) -> None:
    fleet = InMemoryFleet({URL: CAT})
    use(fleet)
    added = post(client)
    fleet.expire(added.json()["id"])
    assert client.get(added["Location"]).json()["error"] == "expired"


def test_bad_requests(client: Any, use: Any) -> None:
    fleet = InMemoryFleet({URL: CAT}, paused=True)
    use(fleet)
    for url in ("file:///etc/passwd", "s3://bucket/key", "no url", 7, None):
        assert post(client, url).status_code == 422, url
    for body in ("[]", "7", "{}", "no json"):
        assert client.post("/pictures", body, content_type="application/json").status_code == 422, body
    assert fleet.submitted == []
    assert client.get("/pictures/no-such").status_code == 404
    assert client.get(post(client)["Location"], {"wait": "long"}).status_code == 422


def test_on_a_real_fleet(client: Any, live_fleet: LiveFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    from pictures import fleets

    monkeypatch.setenv("CLASSIFLEET_BROKER_URL", live_fleet.url)
    fleets.get_fleet.cache_clear()
    with fleets.get_fleet() as fleet:
        assert fleets.get_fleet() is fleet
        cat, gone = (post(client, f"{live_fleet.web}/{name}.jpg") for name in ("chelsea", "no-such"))
        shown = client.get(cat["Location"], {"wait": 10}).json()
        assert shown["status"] == "done"
        assert set(shown["labels"]) == {"imagenet@1", "nsfw@1"}
        assert client.get(gone["Location"], {"wait": 10}).json()["error"] == "not_found"
    fleets.get_fleet.cache_clear()


_PREFORK = """
import os, sys
import django
django.setup()
from django.core.management import call_command
from django.test import Client
from pictures import fleets

def serve(who):
    client = Client()
    added = client.post("/pictures", {"url": sys.argv[1]}, content_type="application/json")
    shown = client.get(added["Location"], {"wait": 10}).json()
    os.write(1, f"{who} {shown['status']}\\n".encode())

call_command("migrate", verbosity=0)
serve("master")  # more than gunicorn --preload does: sockets and a thread exist when it forks
children = []
for number in range(2):
    if (child := os.fork()) == 0:
        try:
            serve("child")
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    children.append(child)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
serve("master")
fleets.get_fleet().close()
sys.exit(max(statuses))
"""


def test_it_may_fork_after_it_is_loaded(live_fleet: LiveFleet) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "EXAMPLE_DATABASE": ":memory:",
        "CLASSIFLEET_BROKER_URL": live_fleet.url,
    }
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PREFORK, f"{live_fleet.web}/rocket.jpg"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(ran.stdout.splitlines()) == ["child done", "child done", "master done", "master done"]
