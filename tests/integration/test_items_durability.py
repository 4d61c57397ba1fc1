"""What was acknowledged is there after a kill, after a loss of power, beside a full disk; damage is refused.

HEADRACE_TEST_LIVES and HEADRACE_TEST_SEED set how many lives a long test has, and which.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import items_writer
import numpy as np
import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.items.batch import ItemBatch
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.open_catalog import ItemFields
from headrace_server.items.store import CatalogStore

HERE = Path(__file__).parent
EVERYTHING = ItemFields(vector=True, payload=True)
WAIT_S = 60


class Lost(AssertionError):
    """Something that was acknowledged is not there, or something is there that nobody wrote."""


class Life:
    """A catalog's directory through the lives of several writers, and what it must and may hold.

    A step that was submitted but not acknowledged when its writer died may have happened or not, but wholly, and only
    with all that were submitted before it: changes of a catalog are committed in their order.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.items: dict[str, int] = {}  # id → the step that wrote it, in the order of first insertion
        self.next_step = 0
        self.num_images = 0  # how often what a writer left was opened from an image
        self.num_torn = 0  # how often it died while it wrote one

    def live(self, delay_s: float, *, preload: Path | None = None, unsafe: bool = False, images: bool = False) -> None:
        """Runs a writer, ends it `delay_s` after it began to write, and checks what it left."""
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
        if preload is not None:
            environment |= {"LD_PRELOAD": str(preload), "UNSYNCED_DIR": str(self.directory)}
        arguments = [
            str(self.directory),
            str(self.seed),
            str(self.next_step),
            "100000",
            *(["--unsafe"] if unsafe else []),
            *(["--images"] if images else []),
        ]
        process = subprocess.Popen(
            [sys.executable, items_writer.__file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        with process:
            ready = process.stdout.readline()
            assert ready == "R\n", "the writer did not start"
            # The pipe holds what the writer says meanwhile, or makes it wait.
            time.sleep(delay_s)
            process.send_signal(signal.SIGUSR1 if preload is not None else signal.SIGKILL)
            said = process.stdout.read().splitlines()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        whole = [line.split() for line in said if len(line.split()) == 2]
        submitted = [int(step) for mark, step in whole if mark == "S"]
        acknowledged = [int(step) for mark, step in whole if mark == "A"]
        self.check(submitted, max(acknowledged, default=self.next_step - 1))

    def check(self, submitted: Sequence[int], acknowledged: int) -> None:
        """The catalog holds exactly what some prefix of the steps makes, no shorter than what was acknowledged."""
        self.num_torn += len(list(self.directory.glob("*.image-new")))
        store = CatalogStore(self.directory)
        try:
            self.num_images += store.catalog("c").loaded.from_image
            held, order = self.read(store)
            for step in range(self.next_step, acknowledged + 1):
                self.apply(step)
            tried = acknowledged
            while held != self.items:
                # One more line may be on its way than was read.
                if tried >= max([*submitted, acknowledged]) + 1:
                    raise Lost(f"{len(held)} items are there, no prefix of the changes makes them")
                tried += 1
                self.apply(tried)
            if order != list(self.items):
                raise Lost("items are there in another order than that of their insertion")
            self.check_search(store)
        finally:
            store.close()
        self.next_step = max([*submitted, acknowledged, tried]) + 2

    def read(self, store: CatalogStore) -> tuple[dict[str, int], list[str]]:
        """Which step wrote each item, every byte of it compared; and the ids as they were inserted."""
        held: dict[str, int] = {}
        for page in store.scan("c", fields=EVERYTHING):
            for item in page.items:
                assert item.payload is not None
                assert item.vector is not None
                step = json.loads(item.payload)["step"]
                if item.payload != items_writer.payload_of(step, item.id):
                    raise Lost(f"{item.id} holds another's payload")
                if item.vector.tolist() != items_writer.vector_of(step, item.id).tolist():
                    raise Lost(f"{item.id} is torn")
                held[item.id] = step
        snapshot = store.index("c")
        _, sequences = snapshot.find(list(held))
        return held, [id_ for _, id_ in sorted(zip(sequences.tolist(), held, strict=True))]

    def check_search(self, store: CatalogStore) -> None:
        """Searches answer as over items rebuilt from what is known."""
        snapshot = store.index("c")
        queries = np.random.default_rng(self.next_step).integers(-9, 10, (3, 8)).astype(np.float32)
        ids = list(self.items)
        vectors = np.array([items_writer.vector_of(step, id_) for id_, step in self.items.items()]).reshape(-1, 8)
        for query, hits in zip(queries, snapshot.search(queries, 25), strict=True):
            scores = vectors @ query  # small whole numbers: exact
            best = np.argsort(-scores, kind="stable")[:25]
            if list(hits.ids) != [ids[i] for i in best] or hits.scores.tolist() != scores[best].tolist():
                raise Lost("a search answers otherwise than over the items rebuilt")

    def apply(self, step: int) -> None:
        kind, ids = items_writer.change(self.seed, step)
        for id_ in ids:
            if kind == "put":
                self.items[id_] = step
            else:
                self.items.pop(id_, None)


@pytest.fixture(autouse=True, scope="module")
def images_of_small_catalogs() -> Iterator[None]:
    """What the writers do, readers do too: every life begins and ends with an image where it can."""
    with pytest.MonkeyPatch.context() as patch:
        items_writer.picture_small_catalogs(patch.setattr)
        yield


def lives(directory: Path, count: int, **how: object) -> None:
    seed = int(os.environ.get("HEADRACE_TEST_SEED", "3"))
    rng = random.Random(seed)
    life = Life(directory, seed)
    for number in range(count):
        life.live(rng.uniform(0.0, 0.5), images=number % 2 == 1, **how)  # type: ignore[arg-type]
    assert life.next_step > 2 * count, "the writers hardly wrote"
    assert life.num_images or count < 6, "images were never of use"
    print(
        f"seed {seed}: {count} lives, {life.next_step} changes, {life.num_images} times opened from an image,"
        f" {life.num_torn} times ended while one was written"
    )


def test_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    lives(tmp_path, 6)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_killed_writer_loses_nothing_acknowledged_in_200_lives(tmp_path: Path) -> None:
    lives(tmp_path, int(os.environ.get("HEADRACE_TEST_LIVES", "200")))


@pytest.fixture(scope="session")
def forgetful_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "unsynced.so"
    source = HERE / "unsynced_writes.c"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, timeout=60)
    return library


def test_lost_power_loses_nothing_acknowledged(tmp_path: Path, forgetful_disk: Path) -> None:
    lives(tmp_path, 3, preload=forgetful_disk)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_lost_power_loses_nothing_acknowledged_in_50_lives(tmp_path: Path, forgetful_disk: Path) -> None:
    lives(tmp_path, int(os.environ.get("HEADRACE_TEST_LIVES", "50")), preload=forgetful_disk)


def several_unsafe_lives(life: Life, forgetful_disk: Path) -> None:
    for _ in range(3):
        life.live(0.3, preload=forgetful_disk, unsafe=True)


def test_lost_power_is_noticed_where_nothing_is_synced(tmp_path: Path, forgetful_disk: Path) -> None:
    life = Life(tmp_path, seed=3)
    life.live(0.1, preload=forgetful_disk)
    with pytest.raises((Lost, ServingError)):
        several_unsafe_lives(life, forgetful_disk)


def batch(start: int, count: int = 1000) -> ItemBatch:
    vectors = np.random.default_rng(start).standard_normal((count, 16)).astype(np.float32)
    return ItemBatch(ids=[f"{start + i:06d}" for i in range(count)], vectors=vectors, payloads=['{"a":1}'] * count)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    store = CatalogStore(tmp_path)
    store.create(CatalogSpec(name="c", dimension=16))
    for start in range(0, 5000, 1000):
        store.upsert("c", batch(start)).result(WAIT_S)
    store.close()
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = shutil.which("mount")
    if command is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    made = subprocess.run(
        [command, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def upsert_until_refused(store: CatalogStore, first: int) -> tuple[ServingError, int]:
    """Why an upsert was refused, and how many items were acknowledged before."""
    for start in range(first, 200_000, 1000):
        if (error := store.upsert("c", batch(start)).exception(WAIT_S)) is not None:
            assert isinstance(error, ServingError)
            return error, start
    raise AssertionError("there was always room")


def test_full_disk_refuses_writes_reads_go_on_and_room_lets_writes_in_again(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (1 << 20))
    store = CatalogStore(small_disk / "catalogs")
    store.create(CatalogSpec(name="c", dimension=16))
    error, acknowledged = upsert_until_refused(store, 0)
    assert error.reason is Reason.STORAGE_FULL
    assert str(small_disk) not in error.message
    info = store.describe("c")
    assert (info.num_items, info.revision) == (acknowledged, acknowledged // 1000)
    assert store.index("c").num_items == acknowledged
    assert len(store.get("c", ["000000", f"{acknowledged - 1:06d}"], EVERYTHING).items) == 2
    assert sum(len(page.items) for page in store.scan("c")) == acknowledged
    with pytest.raises(ServingError) as caught:
        store.create(CatalogSpec(name="d", dimension=16))
    assert caught.value.reason is Reason.STORAGE_FULL
    ballast.unlink()
    before = store.describe("c").num_items
    store.upsert("c", batch(900_000, 10)).result(WAIT_S)
    store.close()
    again = CatalogStore(small_disk / "catalogs")
    assert again.describe("c").num_items == before + 10
    again.close()


def test_file_that_may_grow_no_more_is_refused_by_type_and_stays_readable(tmp_path: Path) -> None:
    store = CatalogStore(tmp_path)
    store.create(CatalogSpec(name="c", dimension=16))
    store.upsert("c", batch(0)).result(WAIT_S)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
        error, acknowledged = upsert_until_refused(store, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.reason is Reason.STORAGE_FULL
    assert len(store.get("c", ["000000"], EVERYTHING).items) == 1
    store.upsert("c", batch(900_000, 10)).result(WAIT_S)
    store.close()
    again = CatalogStore(tmp_path)
    assert again.describe("c").num_items == acknowledged + 10
    again.close()


@pytest.mark.parametrize("with_image", [False, True])
def test_flipped_bytes_are_refused_or_lie_where_nothing_is_kept(filled: Path, with_image: bool) -> None:
    (file,) = filled.glob("items-*.sqlite3")
    image = file.with_suffix(".image").read_bytes()
    whole = file.read_bytes()
    store = CatalogStore(filled)
    queries = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    truth = [(hits.ids, hits.scores.tolist()) for hits in store.index("c").search(queries, 20)]
    store.close()
    rng = random.Random(11)
    refusals = []
    for _ in range(20):
        place = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        file.with_suffix(".image").write_bytes(image if with_image else b"")
        store = CatalogStore(filled)
        try:
            found = [(hits.ids, hits.scores.tolist()) for hits in store.index("c").search(queries, 20)]
            assert found == truth
            got = [item for page in store.scan("c", fields=EVERYTHING) for item in page.items]
            assert len(got) == 5000
            assert all(item.payload == '{"a":1}' for item in got)
        except ServingError as error:
            refusals.append(error)
        finally:
            store.close()
    assert len(refusals) >= 12, "most of the file holds items"
    for refusal in refusals:
        assert refusal.reason in (Reason.STORAGE_CORRUPT, Reason.STORAGE_FAILED)
        assert "catalog 'c'" in refusal.message
        assert str(filled) not in refusal.message


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, None])
def test_file_that_is_none_of_ours_is_refused_and_others_are_served(filled: Path, content: bytes | None) -> None:
    store = CatalogStore(filled)
    store.create(CatalogSpec(name="sound", dimension=16))
    store.upsert("sound", batch(0, 5)).result(WAIT_S)
    store.close()
    file = filled / "items-000001.sqlite3"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    store = CatalogStore(filled)
    for ask in (store.describe, store.index, store.scan):
        with pytest.raises(ServingError) as caught:
            ask("c")
        assert caught.value.reason is Reason.STORAGE_CORRUPT
    assert store.describe("sound").num_items == 5
    assert store.drop("c") == 0
    store.create(CatalogSpec(name="c", dimension=3))
    store.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damaged_list_of_catalogs_is_refused_and_deletes_nothing(filled: Path, damage: str) -> None:
    registry = filled / "catalogs.json"
    content = registry.read_text()
    match damage:
        case "cut":
            registry.write_text(content[: len(content) // 2])
        case "changed":
            registry.write_text(content.replace('"c"', '"d"'))
        case _:
            registry.unlink()
    with pytest.raises(ServingError) as caught:
        CatalogStore(filled)
    assert caught.value.reason is Reason.STORAGE_CORRUPT
    assert (filled / "items-000001.sqlite3").is_file()
    registry.write_text(content)
    store = CatalogStore(filled)
    assert store.describe("c").num_items == 5000
    store.close()


def test_another_process_is_refused_while_one_has_the_catalogs_and_let_in_when_it_died(filled: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from headrace_server.items.store import CatalogStore\n"
        "store = CatalogStore(Path(sys.argv[1])); print('R', flush=True); sys.stdin.read()"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(filled)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "R\n"
        with pytest.raises(ServingError, match=f"in use by process {process.pid}$"):
            CatalogStore(filled)
        process.kill()
    store = CatalogStore(filled)
    assert store.describe("c").num_items == 5000
    store.close()


def test_files_that_no_name_stands_for_are_swept_away(filled: Path) -> None:
    orphan = filled / "items-000077.sqlite3"
    orphan.write_bytes(b"half made")
    store = CatalogStore(filled)
    assert not orphan.exists()
    assert store.describe("c").num_items == 5000
    store.close()
