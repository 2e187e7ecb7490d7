"""``.pt`` files, read by torch in a process of its own: what is taken, and what hostile ones get."""

import asyncio
import base64
import errno
import io
import os
import pickle
import sys
import zipfile

import pytest

from support.loops import until
from triptych.cache.lru import ByteLru
from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.contracts.errors import AbilityMissing, BadRequest, PayloadTooLarge, Unavailable, UnsupportedMedia
from triptych.media.embeddings import pt_file, pt_reader
from triptych.media.embeddings.pt_reader import PtReader
from triptych.media.loader import MediaLoader, MediaReference

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

ITEM = "messages[0].content[0].image_embeds"


def saved(what, **settings):
    out = io.BytesIO()
    torch.save(what, out, **settings)
    return out.getvalue()


async def converted(data, **limits):
    return await PtReader(MediaLimits(**limits), ByteLru(0)).as_safetensors(data, ITEM)


async def loaded(folder, name="x.pt", **limits):
    async with MediaLoader(MediaLimits(**limits), local_path=str(folder)) as loader:
        return await loader.load_one(MediaReference("image", f"file://{folder}/{name}", ITEM, precomputed=True))


async def refused(data, error=BadRequest, **limits):
    with pytest.raises(error) as caught:
        await converted(data, **limits)
    assert caught.value.param == ITEM
    return caught.value


async def test_tensors_come_through_as_they_are(tmp_path):
    values = torch.randn(4, 8).bfloat16()
    beside = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "timestamps": torch.tensor([0.1, 1.1], dtype=torch.float64)}
    (tmp_path / "x.pt").write_bytes(saved({"image_embeds": values, **beside}))
    medium = await loaded(tmp_path)
    assert medium.shape == (4, 8)
    assert medium.dtype == "bfloat16"
    assert medium.data == bytes(values.untyped_storage())
    assert medium.metadata == {"image_grid_thw": (1, 4, 4), "timestamps": (0.1, 1.1)}


async def test_a_parameter_alone_in_the_older_format_and_a_slice_of_rows(tmp_path):
    whole = torch.arange(80, dtype=torch.float32).reshape(10, 8)
    (tmp_path / "x.pt").write_bytes(saved(torch.nn.Parameter(whole[2:6]), _use_new_zipfile_serialization=False))
    medium = await loaded(tmp_path)
    assert medium.shape == (4, 8)
    assert torch.equal(torch.frombuffer(bytearray(medium.data), dtype=torch.float32).view(4, 8), whole[2:6])


async def test_neither_the_edge_nor_its_modules_load_torch():
    code = "import sys, triptych.media.loader, triptych.media.embeddings.pt_file; sys.exit('torch' in sys.modules)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await child.wait() == 0


class Runs:
    """A pickle that runs a command where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def hostile_zip(tmp_path):
    """torch's own archive with another pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(2, 2)))) as good, zipfile.ZipFile(out, "w") as bad:
        for one in good.infolist():
            evil = pickle.dumps(Runs(tmp_path / "ran"), protocol=2)
            bad.writestr(one.filename, evil if one.filename.endswith("data.pkl") else good.read(one))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["torch's older format", "torch's archive"])
async def test_a_malicious_pickle_does_not_run(tmp_path, kind):
    evil = Runs(tmp_path / "ran")
    data = {
        "torch's older format": lambda: saved(evil, _use_new_zipfile_serialization=False),
        "torch's archive": lambda: hostile_zip(tmp_path),
    }[kind]()
    if kind == "torch's archive":  # it would run where all is trusted, or this would prove nothing
        torch.load(io.BytesIO(data), weights_only=False).close()
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()
    assert (await refused(data)).code == "media_damaged"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: torch.eye(4).to_sparse(), "sparse"),
        (lambda: torch.eye(4).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.empty(4, 4, device="meta"), "device meta"),
        (lambda: torch.zeros(1, 1).expand(100_000, 100_000), "a view"),
        (lambda: torch.randn(4, 8).t(), "a view"),
        (lambda: {"embeds": torch.eye(4), "image_grid_thw": torch.eye(4).to_sparse()}, "'image_grid_thw'"),
        (lambda: torch.zeros(2, 2, dtype=torch.complex64), "of dtype complex64"),
        (lambda: {"embeds": torch.eye(4), "seconds": 1.5}, "names and tensors"),
        (lambda: {1: torch.eye(4)}, "names and tensors"),
        (lambda: [torch.eye(4)], "neither a tensor nor a dictionary"),
        (lambda: {}, "neither a tensor nor a dictionary"),
    ],
)
def test_what_is_not_dense_and_in_memory_is_refused(what, words):
    """By the child's own functions, as each of its processes takes seconds; one goes the whole way below."""
    thing = torch.load(io.BytesIO(saved(what())), map_location="cpu", weights_only=True)
    with pytest.raises(pt_file.Refused, match=words):
        pt_file.safetensors_parts(pt_file.dense_tensors(thing, torch), 1 << 20)


def test_a_nested_tensor_is_refused():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    with pytest.raises(pt_file.Refused, match="nested"):
        pt_file.dense_tensors(nested, torch)


async def test_a_sparse_tensor_is_refused_by_the_child():
    error = await refused(saved(torch.eye(4).to_sparse()))
    assert error.code == "media_embedding_refused"
    assert "sparse" in error.message


async def test_a_damaged_file_is_refused():
    assert (await refused(saved(torch.eye(4))[:-1])).code == "media_damaged"


async def test_more_than_the_limit_is_refused():
    data = saved({"embeds": torch.zeros(513, 512)})
    assert (
        "--media-max-embedding-bytes"
        in (await refused(data, PayloadTooLarge, media_max_embedding_bytes=1 << 20)).message
    )


async def test_an_archive_that_grows_in_memory_meets_the_limit():
    """640 MiB of zeros in a file of 3 MiB: torch reads it, but the child may not have so much."""
    whole = saved(torch.zeros(640 << 20, dtype=torch.uint8))
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as good,
        zipfile.ZipFile(out, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as bad,
    ):
        for one in good.infolist():
            bad.writestr(one.filename, good.read(one))
    assert len(out.getvalue()) < len(whole) // 100
    assert (await refused(out.getvalue(), media_max_embedding_bytes=4 << 20)).code == "media_damaged"


async def test_a_child_that_takes_too_long_is_ended():
    error = await refused(saved(torch.eye(4)), media_pt_timeout_s=0.05)
    assert error.code == "media_timeout"
    assert "--media-pt-timeout-s" in error.message


@pytest.mark.event_loop(kind="asyncio")
async def test_a_cancelled_request_ends_its_child(monkeypatch):
    children = []
    start = asyncio.create_subprocess_exec

    async def spied(*words, **settings):
        children.append(await start(*words, **settings))
        return children[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spied)
    task = asyncio.create_task(PtReader(MediaLimits(), ByteLru(0)).as_safetensors(saved(torch.eye(4)), ITEM))
    while not children:
        await asyncio.sleep(0.01)
    assert children[0].returncode is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: children[0].returncode == -9, "the child is gone")


class Counted(PtReader):
    """One whose children are stood in for: they say of every file that it is ``made``, once ``go`` is set."""

    def __init__(self, cache_bytes=1 << 20, status=pt_file.Status.DONE):
        super().__init__(MediaLimits(), ByteLru(cache_bytes))
        self.started, self.ended, self.status = 0, 0, status
        self.go = asyncio.Event()

    async def _run(self, source, made):
        self.started += 1
        try:
            await self.go.wait()
        finally:
            self.ended += 1
        os.pwrite(made, b"made", 0)
        return self.status


async def test_what_was_made_of_a_file_is_kept_and_made_once_for_all_who_ask():
    reader = Counted()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reader.as_safetensors(b"PK one", ITEM)) for _ in range(5)]
        await until(lambda: reader.started, "a child is started")
        reader.go.set()
    assert [bytes(task.result()) for task in tasks] == [b"made"] * 5
    assert bytes(await reader.as_safetensors(memoryview(b"PK one"), ITEM)) == b"made"
    assert reader.started == 1
    await reader.as_safetensors(b"PK another", ITEM)
    assert reader.started == 2
    await reader.close()


async def test_with_a_cache_of_nothing_each_file_is_read_anew():
    reader = Counted(cache_bytes=0)
    reader.go.set()
    for _ in range(2):
        await reader.as_safetensors(b"PK one", ITEM)
    assert reader.started == 2


async def test_failures_are_not_kept_and_name_each_ones_own_field():
    reader = Counted(status=pt_file.Status.FAILED)
    items = ("messages[0]", "messages[1]")
    tasks = [asyncio.create_task(reader.as_safetensors(b"PK one", item)) for item in items]
    await until(lambda: reader.started, "a child is started")
    reader.go.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(one.param, one.message.partition(":")[0]) for one in errors] == [(item, item) for item in items]
    reader.status = pt_file.Status.DONE
    assert bytes(await reader.as_safetensors(b"PK one", ITEM)) == b"made"


async def test_a_cancelled_reader_leaves_the_file_to_others_and_closing_ends_all():
    reader = Counted()
    first, second = (asyncio.create_task(reader.as_safetensors(b"PK one", ITEM)) for _ in range(2))
    await until(lambda: reader.started, "a child is started")
    first.cancel()
    await asyncio.wait([first])
    assert (reader.started, reader.ended) == (1, 0)
    await reader.close()
    assert reader.ended == 1
    with pytest.raises(Unavailable):
        await second


def test_the_child_gets_no_secret(monkeypatch):
    secrets = (
        "TRIPTYCH_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "DATABASE_URL",
        "SSH_AUTH_SOCK",
    )
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    given = env.bare_environment()
    assert "secret" not in given.values()
    assert given["LC_ALL"] == "C.UTF-8"


async def test_without_torch_the_error_says_what_to_do(monkeypatch):
    async def no_torch(self, source, made):
        return pt_file.Status.NO_TORCH

    monkeypatch.setattr(PtReader, "_run", no_torch)
    error = await refused(saved(torch.eye(4)), AbilityMissing)
    assert error.code == "torch_not_installed"
    assert "make install" in error.message


def test_the_child_tells_that_torch_is_missing_or_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert pt_file.main(1) == pt_file.Status.NO_TORCH
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pt_file.main(1) == pt_file.Status.NO_TORCH


async def test_one_from_the_net_or_in_the_request_is_refused():
    url = "data:;base64," + base64.b64encode(saved(torch.eye(4))).decode()

    async def main():
        async with MediaLoader(MediaLimits()) as loader:
            await loader.load_one(MediaReference("image", url, ITEM, precomputed=True))

    with pytest.raises(UnsupportedMedia, match="file: URL only"):
        await main()


def ended_by(monkeypatch, *codes):
    """Let children end so, in turn; returns how many there were."""
    started = []
    run_it = PtReader._run

    async def next_one(self, source, made):
        monkeypatch.setattr(pt_reader, "COMMAND", ("-c", f"import os; {codes[len(started)]}"))
        started.append(source)
        return await run_it(self, source, made)

    monkeypatch.setattr(PtReader, "_run", next_one)
    return started


KILLED, CRASHED, SHORT = "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 11)", "os._exit(75)"


@pytest.mark.parametrize("codes", [(KILLED, KILLED), (SHORT, SHORT), (CRASHED, KILLED), (SHORT, CRASHED)])
async def test_a_failure_of_the_machine_is_not_blamed_on_the_file(monkeypatch, codes):
    started = ended_by(monkeypatch, *codes)
    error = await refused(b"PK", Unavailable)
    assert (error.code, len(started)) == ("media_decoder_unavailable", 2)
    assert error.retry_after_s


@pytest.mark.parametrize("codes", [(CRASHED, CRASHED), (KILLED, "os._exit(1)"), ("os._exit(1)",)])
async def test_what_the_file_does_is_its_own_fault(monkeypatch, codes):
    started = ended_by(monkeypatch, *codes)
    assert (await refused(b"PK")).code == "media_damaged"
    assert len(started) == len(codes)


async def test_no_process_to_be_had_is_no_fault_of_the_file(monkeypatch):
    async def none(*arguments, **settings):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none)
    assert (await refused(b"PK", Unavailable)).code == "media_decoder_unavailable"


async def test_the_output_of_a_child_is_bounded(monkeypatch):
    monkeypatch.setattr(pt_reader, "COMMAND", ("-c", "import os; os.write(1, b'\\x1bx\\n' * 9000); os._exit(3)"))
    error = await refused(b"PK")
    assert error.message.startswith(f"{ITEM}:  x  x ")
    assert len(error.message) < 1100
    monkeypatch.setattr(pt_reader, "COMMAND", ("-c", "import os; os.ftruncate(1, 1 << 40); os._exit(0)"))
    assert len(await converted(b"PK", media_max_embedding_bytes=1000)) == 1000 + pt_file.HEADER_BYTES + 8
