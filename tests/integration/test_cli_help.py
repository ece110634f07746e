"""Help, completion, errors: what one sees of the command line before it does anything."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from classifleet.producer.cli._options import AnswerFormat, RecordFormat
from classifleet.producer.formats import FORMATS
from tests.cli_support import COMMAND

EXAMPLES = {
    ("up",): "classifleet up --models imagenet,nsfw --data ./fleet-data",
    ("worker",): "CLASSIFLEET_MODELS=imagenet,nsfw classifleet worker --http-port 9464",
    ("classify",): "classifleet classify --models imagenet,nsfw --top-k 3 cat.jpg dog.jpg",
    ("bulk",): "classifleet bulk uploads/ --include '*.jpg' --exclude 'tmp/*' --out results/",
    ("jobs", "list"): "classifleet jobs list --count 100 --json",
    ("jobs", "show"): "classifleet jobs show nightly-1",
    ("jobs", "wait"): "classifleet jobs wait nightly-1 --timeout 600",
    ("jobs", "cancel"): "classifleet jobs cancel nightly-1",
    ("jobs", "results"): "classifleet jobs results nightly-1 > records.ndjson",
    ("jobs", "delete"): "classifleet jobs delete nightly-1",
    ("queue", "stats"): "classifleet queue stats --watch",
    ("dead-letters", "list"): "classifleet dead-letters list --code model_failed --model nsfw --since 2h",
    ("dead-letters", "show"): "classifleet dead-letters show nightly-1.00000007.3",
    ("dead-letters", "requeue"): "classifleet dead-letters requeue --code model_failed --since 1d",
    ("dead-letters", "discard"): "classifleet dead-letters discard --all --yes",
    ("config", "show"): "CLASSIFLEET_CONFIG_FILE=fleet.toml classifleet config show --json",
    ("doctor",): "CLASSIFLEET_BROKER_URL=redis://10.0.0.5:6379/0 classifleet doctor --json",
    ("demo",): "classifleet demo --images 1000 --out demo-results",
}


def run(*arguments, code=None, **environment):
    command = COMMAND if code is None else (sys.executable, "-P", "-c", code)
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


def test_help_lists_every_command(cli):
    ended = cli("--help")
    assert ended.code == 0
    for command in ("up", "worker", "classify", "bulk", "jobs", "models", "config", "demo", "doctor"):
        assert f"│ {command} " in ended.out
    for command in ("queue", "dead-letters"):
        assert f"│ {command} " in ended.out


def test_the_version(cli):
    ended = cli("--version")
    assert (ended.code, ended.out) == (0, f"classifleet {importlib.metadata.version('classifleet')}\n")


@pytest.mark.parametrize("command", EXAMPLES, ids=" ".join)
def test_help_of_a_command_shows_an_example_on_a_line_of_its_own(cli, command):
    ended = cli(*command, "--help")
    assert ended.code == 0
    shown = ended.out.partition(" Example")[2].partition("╭")[0].splitlines()[1:]
    examples = [line.strip() for line in shown if line.strip()]
    assert EXAMPLES[command] in examples
    assert all("classifleet " in example for example in examples)  # none is broken into two lines
    assert not [line for line in ended.out.splitlines() if len(line) > 80]


def test_without_a_command_there_is_the_help(cli):
    ended = cli()
    assert "Usage: classifleet" in ended.out + ended.err


def test_an_unknown_command_is_one_clear_error(cli):
    ended = cli("clasify")
    assert ended.code == 2
    assert "No such command 'clasify'. Did you mean 'classify'?" in ended.err


def test_an_unknown_option_is_one_clear_error(cli):
    ended = cli("bulk", "x", "--out", "y", "--modell", "imagenet")
    assert ended.code == 2
    assert "No such option: --modell" in ended.err


def test_a_wrong_format_is_refused_with_those_that_there_are(cli):
    ended = cli("classify", "x.jpg", "--format", "xml")
    assert ended.code == 2
    assert "'xml' is not one of" in ended.err
    assert "'label_map'" in ended.err


def test_the_formats_are_all_of_the_formats():
    assert [shape.value for shape in RecordFormat] == list(FORMATS)
    assert [shape.value for shape in AnswerFormat] == ["table", *FORMATS]


def test_an_error_is_one_line_and_exit_code_2(cli, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MODLES", "imagenet")
    assert cli("config", "show").error == "CLASSIFLEET_MODLES is not a setting; did you mean CLASSIFLEET_MODELS?"


def test_a_misspelt_key_in_the_file_is_one_line_with_what_may_be_meant(cli, monkeypatch, tmp_path):
    (tmp_path / "classifleet.toml").write_text('modles = ["imagenet"]\n')
    monkeypatch.chdir(tmp_path)
    error = cli("config", "show").error
    assert error == "settings: modles is not a setting; did you mean models? (modles from classifleet.toml)"


def test_an_error_of_the_system_is_one_line_too(cli, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLASSIFLEET_BROKER_URL", "redis://127.0.0.1:1")
    (tmp_path / "a.txt").write_text("https://example.com/a.jpg")
    assert "Not a directory" in cli("bulk", tmp_path / "a.txt", "--out", tmp_path / "file" / "deeper").error


def test_a_broker_that_is_down_is_one_line(cli):
    error = cli("jobs", "list", "--broker-url", "redis://:secret@127.0.0.1:1/0").error
    assert "redis://:***@127.0.0.1:1/0 did not answer" in error


@pytest.mark.parametrize("command", ["list", "show x", "wait x", "cancel x", "results x", "delete x"])
def test_jobs_without_a_fleet_say_how_to_name_one(cli, command):
    assert "set CLASSIFLEET_BROKER_URL, or pass --broker-url" in cli("jobs", *command.split()).error


@pytest.mark.parametrize("command", ["queue stats", "dead-letters list", "dead-letters requeue --all"])
def test_other_commands_without_a_fleet_say_so_too(cli, command):
    assert "set CLASSIFLEET_BROKER_URL, or pass --broker-url" in cli(*command.split()).error


def test_model_is_an_alias_of_models(cli):
    for command in ("classify", "bulk", "up", "worker"):
        assert "--models,--model" in cli(command, "--help").out


def test_a_reader_that_leaves_is_no_error():
    piped = f"{' '.join(COMMAND)} config show | head -1"
    ended = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60, env={**os.environ})
    assert "Traceback" not in ended.stderr
    assert ended.stdout.count("\n") == 1


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell):
    ended = run(
        "--show-completion",
        shell,
        code="import sys; sys.argv[0] = 'classifleet'; from classifleet.producer.cli import main; main()",
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert ended.returncode == 0
    assert "_CLASSIFLEET_COMPLETE" in ended.stdout


def complete(words):
    code = "import sys; sys.argv[0] = 'classifleet'; from classifleet.producer.cli import main; main()"
    count = str(len(words.split(" ")) - 1)
    return run(code=code, _CLASSIFLEET_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count).stdout.split()


def test_completion_knows_commands_and_choices():
    assert complete("classifleet jobs ca") == ["cancel"]
    assert complete("classifleet classify --format l") == ["label_map"]


# What needs an extra that is not installed

WITHOUT_EXTRAS = """
import sys
for name in ("torch", "torchvision", "numpy", "PIL", "boto3", "aiohttp", "prometheus_client", "stamina", "structlog"):
    sys.modules[name] = None  # so that importing it raises ModuleNotFoundError
from classifleet.producer.cli import main
main()
"""


def without_extras(*arguments, **environment):
    return run(*arguments, code=WITHOUT_EXTRAS, **environment)


@pytest.mark.parametrize(
    "arguments",
    [("worker", "--models", "imagenet"), ("models", "build", "imagenet"), ("models", "verify", "imagenet")],
)
def test_a_command_without_its_extra_says_what_to_install(arguments, tmp_path):
    ended = without_extras(
        *arguments, CLASSIFLEET_BROKER_URL="redis://127.0.0.1:1", CLASSIFLEET_MODEL_REPOSITORY=str(tmp_path)
    )
    assert ended.returncode == 2, ended
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "pip install 'classifleet[" in line


def test_the_rest_works_without_extras(redis_url):
    assert without_extras("--help").returncode == 0
    ended = without_extras("jobs", "list", "--json", CLASSIFLEET_BROKER_URL=redis_url)
    assert (ended.returncode, ended.stdout) == (0, "")
    doctor = without_extras("doctor", "--json")
    [worker] = [finding for finding in json.loads(doctor.stdout) if finding["subject"] == "worker"]
    assert worker["state"] == "warning"
    assert "pip install 'classifleet[worker]'" in worker["remedy"]


@pytest.mark.parametrize("arguments", [("classify", "a.jpg", "--save", "x"), ("bulk", "s3://b/p", "--out", "x")])
def test_options_without_their_extra_say_so_before_anything_starts(arguments, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    ended = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_EXTRAS, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ},
    )
    assert ended.returncode == 2
    assert "pip install 'classifleet[" in ended.stderr
    assert "starting" not in ended.stderr


def test_a_module_in_the_current_folder_takes_no_ones_place(tmp_path):
    """Children are started with -P: a person's own random.py must not break them."""
    from classifleet.producer.embedded import classifleet_command

    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')")
    ended = subprocess.run(
        classifleet_command("config", "show"), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr


# Settings


def test_config_show_says_where_each_setting_comes_from(cli, monkeypatch, tmp_path):
    (tmp_path / "classifleet.toml").write_text('namespace = "from-file"\nfile_roots = ["/data/[x]", "/b"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLASSIFLEET_BROKER_URL", "redis://user:hunter2@broker:6379/0?password=hunter2")
    ended = cli("config", "show")
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if line.startswith("CLASSIFLEET_")}
    assert lines["CLASSIFLEET_NAMESPACE"] == ["classifleet.toml", "from-file"]
    assert lines["CLASSIFLEET_LEASE_SECONDS"] == ["default", "60.0"]
    assert lines["CLASSIFLEET_BROKER_URL"] == ["environment", "redis://user:***@broker:6379/0?password=***"]
    assert lines["CLASSIFLEET_FILE_ROOTS"] == ["classifleet.toml", "/data/[x],/b"]
    assert "hunter2" not in ended.out


def test_config_show_as_json_masks_secrets_as_well(cli, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_REDIS_URL", "redis://:hunter2@host/0")
    ended = cli("config", "show", "--json")
    settings = json.loads(ended.out)
    assert settings["redis_url"] == {"value": "redis://:***@host/0", "source": "environment"}
    assert settings["queues"] == {"value": ["default"], "source": "default"}
    assert "hunter2" not in ended.out
