"""Settings: where they come from, what is refused, and that no value is shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from quart_ots import create_app
from quart_ots.settings import Settings, StartError, bounds, choices, load, table, variable
from tests.conftest import ROOT

NUMBERS = {name: limits for name, field in Settings.model_fields.items() if (limits := bounds(field))}
WORDS = {name: words for name, field in Settings.model_fields.items() if (words := choices(field))}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an instance folder that has nothing in it."""
    (tmp_path / "work" / "instance").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def write_file(text: str) -> None:
    """Write the instance folder's config.toml."""
    Path("instance/config.toml").write_text(text)


def refusal(**variables: str) -> str:
    """Load settings that must be refused, and return the line that says why."""
    with pytest.raises(StartError) as caught:
        load({variable(name): text for name, text in variables.items()})
    line = str(caught.value)
    assert line.startswith("quart_ots: ")
    assert "\n" not in line
    return line


def test_defaults(folder: Path) -> None:
    """Without a setting everything has its default, and nothing is written."""
    (folder / "instance").rmdir()

    settings, sources = load({"PATH": "/bin", "QUART_OTSX": "1"})

    assert settings == Settings.model_validate({"instance_path": folder / "instance"})
    assert set(sources) == set(Settings.model_fields)
    assert set(sources.values()) == {"default"}
    assert list(folder.iterdir()) == []


def test_settings_do_not_change() -> None:
    """Settings that have been read are fixed, and a name that is no setting is not taken."""
    settings = Settings.model_validate({})

    with pytest.raises(ValidationError):
        settings.drain = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings.model_validate({"drains": 1})


async def test_nothing_is_made_before_serving(settings: Settings, memory: None) -> None:
    """The instance folder, which only its owner may enter, and its key are made by the first start alone."""
    app = create_app(settings)
    assert not settings.instance_path.exists()

    async with app.test_app():
        assert stat.S_IMODE(settings.instance_path.stat().st_mode) == 0o700
        assert [file.name for file in settings.instance_path.iterdir()] == ["master.key"]


@pytest.mark.parametrize("settings", [{"master_keys": SecretStr("A" * 43 + "=")}], indirect=True)
async def test_no_folder_where_none_is_needed(settings: Settings, memory: None) -> None:
    """With keys and a URL from elsewhere, the service writes nothing: its disk may be read-only."""
    async with create_app(settings).test_app():
        assert not settings.instance_path.exists()


@pytest.mark.parametrize("settings", [{"instance_path": Path("/dev/null/instance")}], indirect=True)
async def test_folder_that_can_not_be_made(settings: Settings, memory: None) -> None:
    """An instance folder that cannot be made ends the start with a line that names the setting."""
    app = create_app(settings)

    with pytest.raises(StartError, match="QUART_OTS_INSTANCE_PATH: Not a directory: /dev/null/instance"):
        await app.startup()


def test_order_of_sources(folder: Path) -> None:
    """config.toml in the instance folder wins over the environment; each setting knows where it is from."""
    (folder / "elsewhere").mkdir()
    file = folder / "elsewhere" / "config.toml"
    file.write_text("kdf_queue = 6\nlog_addresses = true\n")

    settings, sources = load(
        {
            "QUART_OTS_INSTANCE_PATH": "elsewhere",
            "QUART_OTS_KDF_THREADS": "5",
            "QUART_OTS_KDF_QUEUE": "5",
            "QUART_OTS_LOG_ADDRESSES": "0",
        }
    )

    assert (settings.instance_path, settings.kdf_threads, settings.kdf_queue) == (folder / "elsewhere", 5, 6)
    assert settings.log_addresses is True
    assert sources["instance_path"] == "QUART_OTS_INSTANCE_PATH"
    assert sources["kdf_threads"] == "QUART_OTS_KDF_THREADS"
    assert sources["kdf_queue"] == sources["log_addresses"] == str(file)
    assert sources["drain"] == "default"


def test_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless told otherwise, settings are those of the process's own environment, as it is then."""
    monkeypatch.setenv("QUART_OTS_DRAIN", "7")

    assert load().settings.drain == 7


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_in_the_environment(name: str) -> None:
    """Each number is taken from its first to its last bound, and refused by name beyond and as anything else."""
    low, high = NUMBERS[name]
    for value in (low, high):
        assert getattr(load({variable(name): str(value)}).settings, name) == value

    for bad in (str(low - 1), str(high + 1), "x", f"{high}.0", f" {high}", f"{high}\n", "1e1", "+1", "٣", "9" * 5000):
        line = refusal(**{name: bad})
        assert line == f"quart_ots: {variable(name)} must be a whole number from {low:,} to {high:,}"


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_in_the_file(name: str) -> None:
    """A number in config.toml is a number of TOML's, within the same bounds; it is refused by file and name."""
    low, high = NUMBERS[name]
    for value in (low, high):
        write_file(f"{name} = {value}\n")
        assert getattr(load({}).settings, name) == value

    for bad in (str(low - 1), str(high + 1), f"{high}.0", f'"{high}"', "true", "[]", "1979-05-27"):
        write_file(f"{name} = {bad}\n")
        assert refusal().endswith(f"config.toml: {name} must be a whole number from {low:,} to {high:,}")


@pytest.mark.parametrize("name", WORDS)
def test_words(name: str) -> None:
    """A setting of a few words takes those, and the refusal lists them."""
    for word in WORDS[name]:
        assert getattr(load({variable(name): word}).settings, name) == word

    assert refusal(**{name: "Info"}) == f"quart_ots: {variable(name)} must be one of {', '.join(WORDS[name])}"


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("", False)])
def test_switch(text: str, value: bool) -> None:
    """A switch is 0 or 1 in the environment."""
    assert load({"QUART_OTS_LOG_ADDRESSES": text}).settings.log_addresses is value


@pytest.mark.parametrize("text", ["2", "true", "yes", "01", "-1"])
def test_switch_that_is_none(text: str) -> None:
    """A switch that is neither 0 nor 1 is refused."""
    assert refusal(log_addresses=text) == (
        "quart_ots: QUART_OTS_LOG_ADDRESSES must be 0 or 1 (true or false in config.toml)"
    )


@pytest.mark.parametrize("bind", ["127.0.0.1:9108", "[::1]:1", "0.0.0.0:65535"])
def test_metrics_bind(bind: str) -> None:
    """METRICS_BIND is an IP address of either family and a port."""
    assert load({"QUART_OTS_METRICS_BIND": bind}).settings.metrics_bind == bind


@pytest.mark.parametrize(
    "bind", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "localhost:9108", ":9108", "9108", "[::1]"]
)
def test_metrics_bind_that_is_none(bind: str) -> None:
    """What is no such pair is refused, with two examples of one."""
    line = refusal(metrics_bind=bind)

    assert line == (
        "quart_ots: QUART_OTS_METRICS_BIND must be an IP address and a port, such as 127.0.0.1:9108 or [::1]:9108"
    )


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("QUART_OTS_BCRYPT_COSTS", "is not a setting; did you mean QUART_OTS_BCRYPT_COST?"),
        ("QUART_OTS_MASTER_KEY", "is not a setting; did you mean QUART_OTS_MASTER_KEYS?"),
        ("QUART_OTS_bcrypt_cost", "is not a setting; did you mean QUART_OTS_BCRYPT_COST?"),
        ("QUART_OTS_", "is not a setting"),
        ("QUART_OTS_TESTING", "is not a setting"),
        ("QUART_OTS_MODEL_CONFIG", "is not a setting"),
        ("QUART_OTS_A__B", "is not a setting"),
    ],
)
@pytest.mark.parametrize("value", ["hunter2", ""])
def test_unknown_variable(key: str, told: str, value: str) -> None:
    """A variable that is no setting stops the start: a typo must not become a default. Its value is not shown."""
    with pytest.raises(StartError) as caught:
        load({key: value})

    assert str(caught.value) == f"quart_ots: {key} {told}"


LINKS = {
    "kubernetes": {
        "QUART_OTS_SERVICE_HOST": "10.96.0.17",
        "QUART_OTS_SERVICE_PORT": "8080",
        "QUART_OTS_SERVICE_PORT_HTTP": "8080",
        "QUART_OTS_PORT": "tcp://10.96.0.17:8080",
        "QUART_OTS_PORT_8080_TCP": "tcp://10.96.0.17:8080",
        "QUART_OTS_PORT_8080_TCP_PROTO": "tcp",
        "QUART_OTS_PORT_8080_TCP_PORT": "8080",
        "QUART_OTS_PORT_8080_TCP_ADDR": "10.96.0.17",
    },
    "another service that begins alike": {
        "QUART_OTS_MONGO_SERVICE_HOST": "fd00::17",
        "QUART_OTS_MONGO_SERVICE_PORT": "27017",
        "QUART_OTS_MONGO_PORT": "tcp://[fd00::17]:27017",
        "QUART_OTS_MONGO_PORT_27017_TCP": "tcp://[fd00::17]:27017",
        "QUART_OTS_MONGO_PORT_27017_TCP_PROTO": "tcp",
        "QUART_OTS_MONGO_PORT_27017_TCP_PORT": "27017",
        "QUART_OTS_MONGO_PORT_27017_TCP_ADDR": "fd00::17",
    },
    "docker": {
        "QUART_OTS_NAME": "/proxy/quart_ots",
        "QUART_OTS_PORT": "udp://172.17.0.2:53",
        "QUART_OTS_PORT_53_UDP": "udp://172.17.0.2:53",
        "QUART_OTS_PORT_53_UDP_PROTO": "udp",
        "QUART_OTS_PORT_53_UDP_PORT": "53",
        "QUART_OTS_PORT_53_UDP_ADDR": "172.17.0.2",
    },
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
def test_service_links_are_passed_over(links: dict[str, str]) -> None:
    """What Kubernetes sets for a Service and Docker for a link, with our prefix by its name alone, is no setting."""
    assert load({**links, "QUART_OTS_DRAIN": "3"}).settings == load({"QUART_OTS_DRAIN": "3"}).settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("QUART_OTS_PORT", "8080"),
        ("QUART_OTS_PORT", ""),
        ("QUART_OTS_HOST", "10.96.0.17"),
        ("QUART_OTS_SERVICE_HOST", "db.example"),
        ("QUART_OTS_SERVICE_PORT", "http"),
        ("QUART_OTS_PORT_TCP", "tcp://10.96.0.17:8080"),
        ("QUART_OTS_NAME", "quart_ots"),
        ("QUART_OTS_KDF_QUEUE_PORT", "100"),
        ("QUART_OTS_MASTER_KEY", "tcp://10.96.0.17:8080"),
    ],
)
def test_variable_that_only_resembles_a_service_link(key: str, value: str) -> None:
    """A name or value of another shape than a service link's is taken for a typing error, and refused."""
    with pytest.raises(StartError, match=f"{key} is not a setting"):
        load({key: value})


def test_empty_variables() -> None:
    """A variable that is set to nothing, as compose files do, is not set; the sources say so too."""
    names = set(Settings.model_fields) - {"mongodb_url", "master_keys"}

    settings, sources = load({variable(name): "" for name in names})

    assert settings == load({}).settings
    assert set(sources.values()) == {"default"}


@pytest.mark.parametrize("name", ["mongodb_url", "master_keys"])
def test_empty_secrets(name: str) -> None:
    """An empty URL or key ring is refused: a default there would be another database, or other keys."""
    assert refusal(**{name: ""}) == f"quart_ots: {variable(name)} is empty: leave it out, or set it"


def test_unknown_name_in_the_file() -> None:
    """A name that is no setting is refused in config.toml as well."""
    write_file("rate_limits = 1\n")
    assert refusal().endswith("config.toml: rate_limits is not a setting; did you mean rate_limit?")
    write_file("[kdf]\nthreads = 1\n")
    assert "config.toml: kdf is not a setting" in refusal()
    write_file("DRAIN = 1\n")
    assert "config.toml: DRAIN is not a setting" in refusal()


def test_broken_file(folder: Path) -> None:
    """A config.toml that cannot be read, or moves the folder that it is in, is refused in a line."""
    write_file("bcrypt_cost =\n")
    assert "config.toml can't be read: TOMLDecodeError" in refusal()
    (folder / "instance" / "config.toml").write_bytes(b"log_level = '\xff'\n")
    assert "config.toml can't be read: UnicodeDecodeError" in refusal()
    write_file("instance_path = 'elsewhere'\n")
    assert "config.toml is in the instance folder and can't set instance_path" in refusal()
    (folder / "instance" / "config.toml").unlink()
    (folder / "instance" / "config.toml").mkdir()
    assert "config.toml can't be read: IsADirectoryError" in refusal()


def test_no_python_is_run(folder: Path) -> None:
    """A config.py in the instance folder, where older versions read one, is not run."""
    (folder / "instance" / "config.py").write_text("raise SystemExit('was run')\n")

    assert load({}).settings == Settings.model_validate({"instance_path": folder / "instance"})


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_url_from_a_file(folder: Path, ending: str) -> None:
    """The database's URL may come from a file, and the sources name that file."""
    (folder / "url").write_text("mongodb://u:hunter2@h/" + ending)

    settings, sources = load({"QUART_OTS_MONGODB_URL_FILE": "url"})

    assert settings.mongodb_url == SecretStr("mongodb://u:hunter2@h/")
    assert (sources["mongodb_url"], sources["mongodb_url_file"]) == ("url", "QUART_OTS_MONGODB_URL_FILE")


def test_url_file_that_can_not_be_read(folder: Path) -> None:
    """A file of the URL that is missing or not text is refused by the setting's name."""
    assert refusal(mongodb_url_file="none").endswith("QUART_OTS_MONGODB_URL_FILE can't be read: FileNotFoundError")
    (folder / "url").write_bytes(b"mongodb://u:hunter2\xff@h/")
    assert refusal(mongodb_url_file="url").endswith("QUART_OTS_MONGODB_URL_FILE can't be read: UnicodeDecodeError")


@pytest.mark.parametrize("name", ["mongodb_url", "master_keys"])
def test_secret_from_two_places(folder: Path, name: str) -> None:
    """A secret in a variable and in a file at once is refused, wherever the two are set."""
    told = f"quart_ots: {variable(name)} and {variable(name)}_FILE are both set: choose one"

    assert refusal(**{name: "hunter2", f"{name}_file": "a file"}) == told
    write_file(f"{name} = 'hunter2'\n")
    assert refusal(**{f"{name}_file": "a file"}) == told


@pytest.mark.parametrize("name", ["mongodb_url", "mongodb_url_file", "master_keys", "master_keys_file"])
def test_text_that_is_none(name: str) -> None:
    """A number where text is wanted is refused by its name."""
    write_file(f"{name} = 5\n")

    assert refusal().endswith(f"config.toml: {name} must be text")


def test_secrets_are_not_printed(folder: Path) -> None:
    """Settings in a log line or a traceback show neither the URL nor a key."""
    settings = load({"QUART_OTS_MONGODB_URL": "mongodb://u:hunter2@h/", "QUART_OTS_MASTER_KEYS": "hunter2"}).settings

    assert "hunter2" not in f"{settings!r} {settings}"


def test_readme_lists_every_setting() -> None:
    """README's table is the one that the settings themselves write, and every setting has its line there."""
    assert table() in (ROOT / "README.md").read_text()
    assert all(f"| `{variable(name)}` |" in table() for name in Settings.model_fields)
