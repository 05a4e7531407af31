import os
from pathlib import Path

import pytest

from agent.settings import AccountError, AgentSettings, endpoint, load_settings, worker_account
from ca.settings import SettingsError, describe
from redirect.desired import Marks


def test_defaults_and_layers(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('run_dir = "/run/a"\nworkers = 2\n[marks]\nagent = 7\n')
    loaded = load_settings({"CULVERT_AGENT_WORKERS": "3"}, {"access_log": "/x"}, file).settings
    assert loaded.admin_socket == Path("/run/a/agent.sock")
    assert (loaded.worker_count, loaded.packet_marks.agent, loaded.access_log) == (3, 7, "/x")
    assert loaded.port_range() == range(15100, 16000)
    assert loaded.packet_marks.spoof == Marks().spoof


def test_marks_are_read_and_shown_in_hex(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("[marks]\nagent = 0xc0170003\n")
    loaded = load_settings({"CULVERT_AGENT_MARKS_SPOOF": "0xC0170009"}, {}, file)
    assert (loaded.settings.marks.agent, loaded.settings.marks.spoof) == (0xC0170003, 0xC0170009)
    rows = {key: value for key, value, _ in loaded.rows()}
    assert (rows["marks.agent"], rows["marks.mask"], rows["workers"]) == ("0xc0170003", "0xffff000f", "0")
    with pytest.raises(SettingsError, match="expected a number, as in 0x2a or 42"):
        load_settings({"CULVERT_AGENT_MARKS_SPOOF": "zz"})
    with pytest.raises(SettingsError, match="the same under"):
        load_settings({"CULVERT_AGENT_MARKS_SPOOF": "0xC0170001"})


def test_one_worker_a_core():
    assert AgentSettings(workers=0).worker_count == len(os.sched_getaffinity(0))


def test_every_setting_is_explained():
    assert [s.key for s in describe(AgentSettings) if not s.doc] == []


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        ({"capture_ports": "1-70000"}, "no range of ports"),
        ({"capture_ports": "15000-15100"}, "holds port 15000"),
        ({"metrics": "localhost"}, r"metrics 'localhost' is no IP:PORT"),
        ({"address": "web-1"}, "^flag --address: address 'web-1' is no IP address"),
        ({"log_level": "loud"}, "use debug"),
    ],
)
def test_what_cannot_be_used_is_refused(flags, cause):
    with pytest.raises(SettingsError, match=cause):
        load_settings({}, flags)


def test_endpoints():
    assert endpoint("127.0.0.1:80") == ("127.0.0.1", 80)
    assert endpoint("[::1]:80") == ("::1", 80)
    for bad in ("", ":80", "::1", "1.2.3.4:http", "1.2.3.4:99999"):
        with pytest.raises(ValueError, match="IP:PORT"):
            endpoint(bad)


def maps(tmp_path: Path, text: str) -> str:
    (tmp_path / "uid_map").write_text(text)
    return str(tmp_path / "uid_map")


def test_worker_account(tmp_path):
    assert worker_account("nobody")[0] == 65534
    assert worker_account("54321") == (54321, 54321)
    with pytest.raises(AccountError, match=r"systemd-sysusers.*useradd .* no-such-user"):
        worker_account("no-such-user")
    own = str(os.geteuid())
    with pytest.raises(AccountError, match="own user"):
        worker_account(own, maps(tmp_path, "0 0 4294967295\n"))
    assert worker_account(own, maps(tmp_path, "0 1000 1\n"))[0] == os.geteuid()
