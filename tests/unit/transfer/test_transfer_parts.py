"""Tests the small parts of the transfer plane: leases, their table, copies, files, back ends by name."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import msgspec
import pytest

from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import ConfigError, Unavailable
from triptych.transfer import leases as leases_module
from triptych.transfer.leases import Leases
from triptych.transfer.nixl.copies import AddressRange, Copy, batched, covers, cut
from triptych.transfer.registry import make_transfer
from triptych.transfer.shm import files as shm_files
from triptych.transfer.table import TABLE_BYTES, LeaseTable


class FakeBuffer:
    size_bytes = 100

    class block:
        start = 640

    def __init__(self):
        self.holders = 1

    def share(self):
        self.holders += 1
        return self

    def close(self):
        self.holders -= 1


@pytest.fixture
def table():
    return LeaseTable(memoryview(bytearray(TABLE_BYTES)))


@pytest.fixture
def clock():
    class Clock:
        now_s = 1000.0

        def __call__(self):
            return self.now_s

    return Clock()


def test_an_open_lease_allows_one_place_and_size_until_it_ends(table, clock):
    leases, buffer = Leases(table, 30.0, base=1 << 40, clock=clock), FakeBuffer()
    lease = leases.open(buffer)
    place = (1 << 40) + 640
    assert table.entry(lease.slot).allows(lease.token, place, 100)
    assert not table.entry(lease.slot).allows(lease.token, place, 99)
    assert not table.entry(lease.slot).allows(lease.token, place + 1, 100)
    assert not table.entry(lease.slot).allows(lease.token ^ 1, place, 100)
    assert leases.end(lease.number)
    assert not leases.end(lease.number)
    assert not table.entry(lease.slot).allows(lease.token, place, 100)
    assert buffer.holders == 1


def test_leases_end_when_fetched_or_expired(table, clock):
    leases, buffers = Leases(table, 30.0, clock=clock), [FakeBuffer() for _ in range(3)]
    first, second, _ = [leases.open(buffer) for buffer in buffers]
    table.mark_done(second.slot, second.token)
    leases.collect()
    assert [buffer.holders for buffer in buffers] == [2, 1, 2]
    assert leases.find(first.number, first.token) is first
    clock.now_s += 29.9
    late = leases.open(FakeBuffer())
    leases.collect()
    assert (len(leases), leases.expired) == (3, 0)
    clock.now_s += 0.2
    leases.collect()
    assert (len(leases), leases.expired, leases.exported) == (1, 2, 4)
    assert leases.find(late.number, late.token) is late


def test_a_late_receiver_does_not_end_the_slots_next_lease(table, clock):
    leases = Leases(table, 30.0, clock=clock)
    old = leases.open(FakeBuffer())
    leases.end(old.number)
    new = leases.open(FakeBuffer())
    assert new.slot == old.slot, "slots are used again"
    table.mark_done(old.slot, old.token)
    leases.collect()
    assert leases.find(new.number, new.token) is new
    assert leases.find(new.number, old.token) is None


def test_leases_are_bounded(table, clock, monkeypatch):
    monkeypatch.setattr(leases_module, "SLOTS", 3)
    leases = Leases(table, 30.0, clock=clock)
    made = [leases.open(FakeBuffer()) for _ in range(3)]
    with pytest.raises(Unavailable, match="wait to be fetched"):
        leases.open(FakeBuffer())
    table.mark_done(made[1].slot, made[1].token)
    leases.open(FakeBuffer())
    leases.close()
    assert len(leases) == 0


def test_copies_are_cut_at_the_ends_of_registrations():
    whole = Copy(100, 1050, 300)
    assert cut(whole, [500], [2000], 1000) == [whole]
    assert cut(whole, [200, 500], [1100, 2000], 1000) == [
        Copy(100, 1050, 50),
        Copy(150, 1100, 50),
        Copy(200, 1150, 200),
    ]
    assert [copy.size for copy in cut(whole, [500], [2000], 128)] == [128, 128, 44]
    assert cut(Copy(100, 1050, 0), [], [], 128) == []


def test_covers():
    slabs = [AddressRange(100, 50), AddressRange(150, 50)]
    assert covers(slabs, AddressRange(120, 80))
    assert covers(slabs, AddressRange(100, 100))
    assert not covers(slabs, AddressRange(99, 10))
    assert not covers(slabs, AddressRange(150, 51))
    assert not covers([AddressRange(100, 50), AddressRange(160, 50)], AddressRange(110, 10)), "a gap"
    assert not covers([AddressRange(100, 0), AddressRange(100, 50)], AddressRange(110, 10)), "an empty one"
    assert covers([], AddressRange(7, 0))
    assert not covers([], AddressRange(7, 1))


def test_batches_keep_both_limits():
    copies = [Copy(0, 0, size) for size in (60, 40, 1, 100, 0, 0, 0, 0)]
    sizes = [[copy.size for copy in batch] for batch in batched(copies, 100, 3)]
    assert sizes == [[60, 40], [1], [100, 0, 0], [0, 0]]
    assert batched([], 100, 3) == []


def test_only_files_of_dead_owners_are_removed(tmp_path):
    alive, dead = f"shm-1-{'a' * 16}", f"shm-2-{'b' * 16}"
    arena, table = shm_files.create(tmp_path, alive)
    for fd in shm_files.create(tmp_path, dead):
        os.close(fd)
    (tmp_path / "triptych-shm-etc.leases").write_text("somebody else's")
    shm_files.remove_dead(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"triptych-{alive}.arena", f"triptych-{alive}.leases", "triptych-shm-etc.leases"}
    os.close(arena)
    os.close(table)


def test_only_well_formed_owner_names_become_paths():
    assert shm_files.is_owner(f"shm-123-{'0' * 16}")
    for name in ("", "../x", f"shm-1-{'0' * 16}/..", f"shm-1-{'0' * 16}\n", "shm-1-zz"):
        assert not shm_files.is_owner(name)


def test_unknown_back_ends_list_the_known_ones():
    with pytest.raises(ConfigError, match="inproc, nixl, shm"):
        make_transfer(TransferConfig(transfer="pigeon"))


def test_the_default_is_nixl_if_it_is_installed():
    assert make_transfer(TransferConfig()).id.startswith("nixl-" if find_spec("nixl") else "shm-")


def test_a_missing_nixl_says_what_to_install(monkeypatch):
    from triptych.transfer.nixl import agent as nixl_agent

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(nixl_agent.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"triptych\[nixl\].*--transfer shm"):
        nixl_agent.NixlAgent("somebody", "lo")


def test_unknown_settings_are_refused():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"arena_byte": 1}, TransferConfig)


def test_the_arena_needs_neither_torch_nor_numpy():
    words = "import sys, triptych.transfer.shm.transfer; assert not {'torch', 'numpy', 'nixl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", words], check=True)
