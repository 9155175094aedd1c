import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from schemas import shards
from schemas.errors import IntegrityError
from schemas.shards import Shard, ShardWriter
from schemas.storage import Root
from tests.schemas.test_shards import SETTINGS, photos, seal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demo-1.lmdb.token.tmp"


@pytest.fixture
def sealed(path: Path) -> Path:
    return seal(path, photos())


def answer(shard: Shard, answers: "SimpleQueue[tuple[bytes, int, int]]") -> None:
    again = Shard(shard.path)
    answers.put((shard.get("demo/0/000"), len(again), len(shards._ENVIRONMENTS)))


def ask_a_child(context: BaseContext, shard: Shard) -> tuple[bytes, int, int]:
    answers: SimpleQueue[tuple[bytes, int, int]] = context.SimpleQueue()
    child = context.Process(target=answer, args=(shard, answers))  # type: ignore[attr-defined]  # not in the stub
    child.start()
    child.join(60)
    assert child.exitcode == 0
    return answers.get()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_shard_goes_to_other_processes(sealed: Path, method: str) -> None:
    with Shard(sealed) as shard:
        shard.get("demo/0/000")
        expected = (photos()["demo/0/000"], len(photos()), 1)
        assert ask_a_child(multiprocessing.get_context(method), shard) == expected
        assert shard.get("demo/0/000") == expected[0]


def test_a_fork_of_a_fork_reads_while_its_parents_do(sealed: Path) -> None:
    with Shard(sealed) as shard:
        assert shard.get("demo/0/001") == photos()["demo/0/001"]
        child = os.fork()
        if child == 0:
            codes = [0 if shard.get(key) == jpeg else 1 for key, jpeg in photos().items()]
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(max(0 if shard.get(key) == jpeg else 1 for key, jpeg in photos().items()))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
            shard.close()
            os._exit(max(codes))
        assert all(shard.get(key) == jpeg for key, jpeg in photos().items())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert dict(shard.items()) == photos()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_reads_though_a_thread_held_the_lock(sealed: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with shards._process_lock():
            held.set()
            done.wait(60)

    with Shard(sealed) as shard:
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        child = os.fork()
        if child == 0:
            os._exit(0 if shard.get("demo/0/000") == photos()["demo/0/000"] else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        done.set()
        thread.join()
    assert code == 0


def test_a_fork_does_not_remove_what_its_parent_writes(path: Path) -> None:
    with ShardWriter(path, SETTINGS) as writer:
        writer.put("demo/1/000", b"x")
        child = os.fork()
        if child == 0:
            writer.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        writer.seal()
    with Shard(path) as shard:
        assert shard.get("demo/1/000") == b"x"


def test_a_shard_is_pickled_by_its_place(sealed: Path) -> None:
    with Shard(sealed) as shard, pickle.loads(pickle.dumps(shard)) as copy:
        assert len(pickle.dumps(shard)) < 1_000
        assert copy.get("demo/0/000") == shard.get("demo/0/000")
        assert len(shards._ENVIRONMENTS) == 1


def test_an_open_shard_is_no_trouble_when_the_interpreter_ends(sealed: Path) -> None:
    script = (
        "import sys\nfrom schemas.shards import Shard\nshard = Shard(sys.argv[1])\nitems = shard.items()\nnext(items)\n"
        "cycle = [shard]\ncycle.append(cycle)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(sealed)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Remote roots


def test_a_remote_shard_is_read_through_the_cache(new_bucket: Callable[[], str]) -> None:
    root = Root.open(new_bucket(), create=True)
    seal(staged := root.staged("shards/demo-1.lmdb", "token"), photos())
    root.publish(staged, "shards/demo-1.lmdb")
    with Shard.open(root, "shards/demo-1.lmdb") as shard:
        assert dict(shard.items()) == photos()
        shutil.rmtree(shard.path.parent.parent)
        with pickle.loads(pickle.dumps(shard)) as copy:
            assert copy.get("demo/0/000") == photos()["demo/0/000"]
        child = os.fork()
        if child == 0:
            os._exit(0 if shard.get("demo/0/000") == photos()["demo/0/000"] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(IntegrityError, match=r"shards/demo-2\.lmdb is not a sealed shard: there is no such file"):
        Shard.open(root, "shards/demo-2.lmdb")


def test_a_local_shard_is_opened_by_its_name(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "set"), create=True)
    seal(staged := root.staged("shards/demo-1.lmdb", "token"), photos())
    root.publish(staged, "shards/demo-1.lmdb")
    with Shard.open(root, "shards/demo-1.lmdb") as shard, pickle.loads(pickle.dumps(shard)) as copy:
        assert shard.path == tmp_path / "set/shards/demo-1.lmdb"
        assert dict(copy.items()) == photos()
