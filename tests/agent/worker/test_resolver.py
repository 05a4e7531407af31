"""Naming the caller of a connection: cgroup before address before uid, as the rules do it."""

import pytest

from agent.book import Book
from agent.messages import Signs
from agent.snapshot import Snapshot
from agent.worker.resolver import SKIPPED, Named, Namer, Resolver, Unnameable
from ca.resources.capture import CaptureSettings, Flow, Skip
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.resources.workload import Workload, WorkloadSpec
from redirect.caller import Caller

LOCAL, REMOTE = ("10.0.0.1", 40000), ("10.0.0.2", 80)


class Kernel:
    """What the kernel says about every socket."""

    def __init__(self) -> None:
        self.answer: Caller | None = None
        self.error: OSError | None = None

    def find(self, local, remote):
        assert (local, remote) == (LOCAL, REMOTE)
        if self.error:
            raise self.error
        return self.answer


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def namer(kernel, slice_):
    made = Namer.make(lambda: kernel)
    made.signs = Signs(
        {f"{slice_.name}/web.service": "shop/web", f"{slice_.name}/web.service/inner": "shop/inner"},
        {"10.0.0.1": "shop/address"},
        {1001: "shop/uid"},
    )
    return made


def test_by_the_closest_cgroup(namer, kernel, slice_):
    for name, workload in (
        ("web.service", "shop/web"),
        ("web.service/other", "shop/web"),
        ("web.service/inner", "shop/inner"),
        ("web.service/inner/deep", "shop/inner"),
    ):
        (slice_ / name).mkdir()
        kernel.answer = Caller(1001, (slice_ / name).stat().st_ino)
        assert namer.whose(LOCAL, REMOTE).workload == workload


def test_a_name_that_only_begins_alike_is_another(namer, kernel, slice_):
    (slice_ / "web.service2").mkdir()
    kernel.answer = Caller(5, (slice_ / "web.service2").stat().st_ino)
    assert namer.whose(LOCAL, REMOTE).workload == "shop/address"


def test_else_by_address_uid_or_nobody(namer, kernel, slice_):
    kernel.answer = Caller(1001, slice_.stat().st_ino)
    assert namer.whose(LOCAL, REMOTE).workload == "shop/address"
    namer.signs = Signs({}, {}, {1001: "shop/uid"})
    assert namer.whose(LOCAL, REMOTE).workload == "shop/uid"
    kernel.answer = Caller(1002, slice_.stat().st_ino)
    assert namer.whose(LOCAL, REMOTE).workload is None


def test_what_cannot_be_named_is_not_taken_for_nobodys(namer, kernel, slice_):
    with pytest.raises(Unnameable, match="the caller has gone"):
        namer.whose(LOCAL, REMOTE)
    kernel.answer = Caller(1001, 2**63)
    with pytest.raises(Unnameable, match="cgroup has gone"):
        namer.whose(LOCAL, REMOTE)
    kernel.answer = Caller(1001, 0)  # an old kernel
    with pytest.raises(Unnameable):
        namer.whose(LOCAL, REMOTE)
    kernel.error = OSError(95, "Operation not supported")
    with pytest.raises(Unnameable, match="Operation not supported"):
        namer.whose(LOCAL, REMOTE)


class Calls:
    """Takes a connection over, and remembers how."""

    def __init__(self) -> None:
        self.made: list[tuple[str, object]] = []

    def __getattr__(self, name: str):
        return lambda *arguments, **more: self.made.append((name, arguments[1:]))


@pytest.mark.parametrize(
    ("where", "uid", "reason"),
    [
        (("192.0.2.1", 3306), 5, SKIPPED),
        (("10.9.0.1", 80), 5, SKIPPED),
        (("192.0.2.1", 80), 990, SKIPPED),
        (("192.0.2.1", 80), 5, ""),
    ],
)
def test_what_the_rules_would_have_skipped_goes_on_as_it_was(monkeypatch, where, uid, reason) -> None:
    """A new cgroup's first connections are held before any rule of its workload sees them."""
    monkeypatch.setattr("agent.worker.resolver.original_destination", lambda sock: where)
    skip = CaptureSettings(out=Flow(skip=Skip((3306,), ("10.9.0.0/16",), (990,))))
    web = Workload(Metadata("web", "shop", {"mesh": "on"}), WorkloadSpec("n1", "web", capture=skip))
    snapshot = Snapshot("n1").apply(1, [Mesh(Metadata("mesh"), MeshSpec("shop.example")), web], [])
    outbound, inbound = Calls(), Calls()
    namer = Namer.make()
    monkeypatch.setattr(Namer, "whose", lambda *_: Named("shop/web", uid))
    Resolver(Book(1, lambda: None), outbound, inbound, namer).captured(snapshot, None, ("10.0.0.1", 40000))
    if reason:
        ((how, (_, *there, (entry,))),) = inbound.made
        assert (how, tuple(there), entry.reason) == ("dial", where, reason)
        assert outbound.made == []
    else:
        assert [how for how, _ in outbound.made] == ["captured"]
        assert inbound.made == []
