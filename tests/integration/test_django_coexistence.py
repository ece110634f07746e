"""Inside a Django project with a Celery of its own, neither side changes what the other sees.

Each case is a process of its own: a small Django project, set up as Celery's guide says, and classifleet beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SettingsFactory

# The names are those of Celery's guide "First steps with Django".
HOST = {
    "proj/__init__.py": "from proj.celery import app as celery_app\n",
    "proj/settings.py": (
        "SECRET_KEY = 'x'\nUSE_TZ = True\nINSTALLED_APPS = ['shop']\n"
        "CELERY_TASK_DEFAULT_QUEUE = 'host-queue'\nCELERY_BROKER_URL = 'memory://host-settings'\n"
    ),
    "proj/celery.py": (
        "from celery import Celery\n"
        "app = Celery('proj')\n"
        "app.config_from_object('django.conf:settings', namespace='CELERY')\n"
        "app.autodiscover_tasks()\n"
    ),
    "shop/__init__.py": "",
    "shop/tasks.py": (
        "from celery import Task, shared_task\n"
        "BOUND = []\n"
        "class HostTask(Task):\n"
        "    @classmethod\n"
        "    def on_bound(cls, app):\n"
        "        BOUND.append(app.main)\n"
        "@shared_task(base=HostTask)\n"
        "def bill():\n"
        "    return 'billed'\n"
    ),
}
START_DJANGO = "import django; django.setup(); import proj, shop.tasks"
START_OURS = """
import os
from classifleet.config import Settings
from classifleet.config.celery_app import make_app
from classifleet.producer import Fleet
ours = make_app(Settings.load(broker_url=os.environ['OUR_BROKER']))
fleet = Fleet(os.environ['OUR_BROKER'])
handle = fleet.submit('https://example.com/a.jpg', models='imagenet')

@ours.task(name='classifleet.classify')
def classify():
    return 'classified'
"""
REPORT = """
import json
from celery import Celery, current_app, shared_task
from proj.celery import app as host
from shop.tasks import BOUND, bill

@shared_task(name='late.task')
def late():
    return 'late'

ours.finalize()
host.finalize()
print(json.dumps({
    'current': current_app.main,
    'bill_app': bill.app.main,
    'bill_queue': bill.app.conf.task_default_queue,
    'bill_result': bill.apply().get(),
    'bound': sorted(set(BOUND)),
    'late': late.apply().get(),
    'host_tasks': sorted(name for name in host.tasks if not name.startswith('celery.')),
    'our_tasks': sorted(name for name in ours.tasks if not name.startswith('celery.')),
    'host_broker': host.connection_for_write().as_uri(include_password=True),
    'our_read': ours.connection_for_read().as_uri(include_password=True),
    'our_write': ours.connection_for_write().as_uri(include_password=True),
    'our_conf_broker': ours.conf.broker_url,
    'our_backend': ours.conf.result_backend,
    'our_acks_late': ours.conf.task_acks_late,
    'our_fixups': [type(f).__name__ for f in ours.fixups],
    'host_acks_late': host.conf.task_acks_late,
    'unchanged': {name: os.environ[name] for name in os.environ if name.startswith('CELERY_')} == celery_variables,
    'job': handle.id,
}))
fleet.close()
"""
KEEP = "import os; celery_variables = {n: v for n, v in os.environ.items() if n.startswith('CELERY_')}"
HOST_VARIABLES = {
    "CELERY_BROKER_URL": "memory://host-variable",
    "CELERY_BROKER_READ_URL": "memory://host-variable",
    "CELERY_BROKER_WRITE_URL": "memory://host-variable",
    "CELERY_RESULT_BACKEND": "cache+memory://",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Django project."""
    folder = tmp_path_factory.mktemp("django")
    for name, text in HOST.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def run_in(project: Path, broker: str, *steps: str, **variables: str) -> dict[str, Any]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((KEEP, *steps, REPORT))],
        cwd=project,
        env={**kept, "DJANGO_SETTINGS_MODULE": "proj.settings", "OUR_BROKER": broker, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("variables", [{}, HOST_VARIABLES], ids=["settings", "variables"])
@pytest.mark.parametrize("steps", [(START_DJANGO, START_OURS), (START_OURS, START_DJANGO)], ids=["django", "ours"])
def test_neither_sees_the_other(
    project: Path, redis_url: str, steps: tuple[str, ...], variables: dict[str, str]
) -> None:
    seen = run_in(project, redis_url, *steps, **variables)
    host_broker = "memory://host-variable" if variables else "memory://host-settings"
    assert seen.pop("job")
    assert seen.pop("host_broker").rstrip("/") == host_broker
    assert seen == {
        "current": "proj",
        "bill_app": "proj",
        "bill_queue": "host-queue",
        "bill_result": "billed",
        "bound": ["proj"],
        "late": "late",
        "host_tasks": ["late.task", "shop.tasks.bill"],
        "our_tasks": ["classifleet.classify"],
        "our_read": redis_url,
        "our_write": redis_url,
        "our_conf_broker": redis_url,
        "our_backend": None,
        "our_acks_late": True,
        "our_fixups": [],
        "host_acks_late": False,
        "unchanged": True,
    }


def test_an_ordinary_second_app_would_have_been_seen(project: Path, redis_url: str) -> None:
    """The probe is sharp: with a plain Celery in our place it reports capture in both directions."""
    plain = START_OURS.replace(
        "ours = make_app(Settings.load(broker_url=os.environ['OUR_BROKER']))",
        "from celery import Celery\nours = Celery('plain', broker=os.environ['OUR_BROKER'])",
    )
    seen = run_in(project, redis_url, START_DJANGO, plain, **HOST_VARIABLES)
    assert seen["current"] == "plain"
    assert seen["bill_app"] == "plain"
    assert seen["our_write"] != redis_url
    assert "shop.tasks.bill" in seen["our_tasks"]
    assert "classifleet.classify" in seen["host_tasks"]


def test_loaders_and_configuration_modules_of_the_host_are_not_read(settings: SettingsFactory, tmp_path: Path) -> None:
    code = START_OURS + "\nprint(ours.conf.task_acks_late, type(ours.loader).__name__); fleet.close()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "CELERY_LOADER": "no.such.module:Loader",
            "CELERY_CONFIG_MODULE": "no_such_module",
            "OUR_BROKER": settings().broker_url or "",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ")
