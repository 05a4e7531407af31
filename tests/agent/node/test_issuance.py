"""What the centre says beside certificates."""

import random
import time
from pathlib import Path

import pytest

from agent.clock import CentreClock
from agent.node.issuance import Issuance
from agent.node.state import Membership, State
from ca.client import boot_time
from tests.agent.certs import TestRoot

NODE = "spiffe://shop.example/node/n1"


@pytest.mark.parametrize("nonsense", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_roots_that_are_none_are_not_taken(tmp_path: Path, nonsense: bytes) -> None:
    """Neither workers nor the next start could go on with them."""
    root, state = TestRoot(), State(tmp_path)
    state.save_roots(root.pem)
    trusted: list[bytes] = []
    issuance = Issuance(
        state,
        Membership("n1", "shop.example", "127.0.0.1:15012"),
        "127.0.0.1:15012",
        root.leaf(NODE),
        root.pem,
        CentreClock(time.time, boot_time),
        10.0,
        hold=print,
        trust=trusted.append,
        changed=lambda: None,
        renewed=lambda: None,
        rng=random.Random(1),
    )
    await issuance.trusted(nonsense)
    assert trusted == [root.pem]
    assert State(tmp_path).roots() == root.pem
    other = TestRoot().pem
    await issuance.trusted(other)
    assert trusted[-1] == State(tmp_path).roots() == other
