"""In processes of their own: pytest's has imported all of it already."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def outcome(text: str) -> list[str]:
    code = f"from agent import lean\nlean.begin()\nimport sys\n{text}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_both_sides_do_without_a_second_openssl() -> None:
    text = """
import agent.worker.worker, agent.cli.logs, agent.node.supervisor
print(*[name for name, module in sys.modules.items() if module], sep="\\n")
"""
    held = outcome(text)
    assert "agent.node.supervisor" in held
    left = {"_ssl", "_hashlib", "idna.core", "asyncio", "rich", "yaml", "importlib.metadata", "pyroute2.ndb"}
    assert left.isdisjoint(held)


def test_who_needs_a_module_after_all_gets_it() -> None:
    text = """
import trio, ssl
from ssl import SSLContext
assert "_ssl" in sys.modules
assert trio._highlevel_ssl_helpers.ssl.SSLContext is ssl.SSLContext is SSLContext
print(trio._socket._idna.encode("b\\u00fccher.example", uts46=True).decode())
"""
    assert outcome(text) == ["xn--bcher-kva.example"]


def test_structlog_has_asyncio_when_it_is_touched() -> None:
    text = """
from agent.cli import logs
import structlog.stdlib
assert "asyncio" not in sys.modules
print(structlog.stdlib.asyncio.sleep.__name__, "asyncio" in sys.modules)
"""
    assert outcome(text) == ["sleep True"]


def test_hashes_are_the_same() -> None:
    text = """
import hashlib, hmac
print(hashlib.sha256(b"text").hexdigest(), hashlib.blake2b(b"text", digest_size=8).hexdigest())
print(hmac.compare_digest(b"a", b"a"), hmac.compare_digest(b"a", b"b"))
"""
    sums = f"{hashlib.sha256(b'text').hexdigest()} {hashlib.blake2b(b'text', digest_size=8).hexdigest()}"
    assert outcome(text) == [sums, "True False"]


def test_sockets_of_pyroute2_are_whole_for_those_who_import_them() -> None:
    text = """
import redirect.encode
assert "asyncio" not in sys.modules
from pyroute2.iproute import IPRoute
with IPRoute() as ip:
    print(ip.link_lookup(ifname="lo"))
"""
    assert outcome(text) == ["[1]"]
