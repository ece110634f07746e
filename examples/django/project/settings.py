"""Only what the example needs; the fleet's own settings are the CLASSIFLEET_* variables."""

import os
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY", "only-for-this-example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
INSTALLED_APPS = ["pictures"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("EXAMPLE_DATABASE", Path(__file__).parents[1] / "db.sqlite3"),
        "ATOMIC_REQUESTS": True,  # every request is a transaction: what it enqueues is enqueued when it commits
    }
}
