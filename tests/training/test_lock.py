"""One run per folder: the second says who holds it, whatever happened to the first."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import suppress

import pytest
import torch

from pmsn_plugins import train
from pmsn_plugins.training import FolderInUseError, Settings, hold_folder, lock, snapshot

fcntl = pytest.importorskip("fcntl")

COMMAND = ["digits", "--network-option", "width=8", "--network-option", "blocks=1", "--quiet"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pmsn_plugins.train")
HOLD = """
import sys
from pmsn_plugins.training.lock import hold_folder
for folder in map(str.strip, sys.stdin):
    with hold_folder(folder):
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
"""


def start(*args, launcher=("-m", "pmsn_plugins.train"), **kwargs):
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


class Holder:
    """Another process that holds folders when it is told to."""

    def __init__(self):
        self.process = start(HOLD, launcher=("-c",), stdin=subprocess.PIPE)
        self.pid = self.process.pid

    def tell(self, line, answer):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{answer}\n", self.process.communicate()[1]

    def hold(self, folder):
        self.tell(folder, "held")

    def release(self):
        self.tell("", "released")

    def stop(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def one_holder():
    holder = Holder()
    yield holder
    holder.stop()


@pytest.fixture
def holder(one_holder, tmp_path):
    """The other process, holding ``tmp_path``."""
    one_holder.hold(tmp_path)
    yield one_holder
    one_holder.release()


def wait_until(condition, process):
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it takes too long"  # and goes on: what it prints has no end yet
        time.sleep(0.01)


def note(folder):
    return (folder / lock.LOCK).read_text()


def held_by(process):
    """What is said of a folder that this process holds."""
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    return rf"is in use by process {process.pid} on {re.escape(socket.gethostname())} since {since}: wait until it ends"


def test_who_holds_the_folder(one_holder, tmp_path):
    one_holder.hold(tmp_path)
    for _ in range(2):  # asking does not break the lock
        with pytest.raises(FolderInUseError, match=held_by(one_holder)), hold_folder(tmp_path):
            pass
    one_holder.release()
    assert note(tmp_path) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hold_folder(tmp_path):
            assert json.loads(note(tmp_path))["pid"] == os.getpid()
    assert note(tmp_path) == ""


def test_what_a_killed_process_held_is_taken_over(tmp_path):
    holder = Holder()
    holder.hold(tmp_path)
    holder.stop()
    notice = rf"in use by process {holder.pid} on .*, which was killed: taking it over"
    with pytest.warns(UserWarning, match=notice), hold_folder(tmp_path):
        pass
    assert note(tmp_path) == ""


def test_every_way_out_of_the_block_gives_the_folder_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), hold_folder(folder):
            assert note(folder)
            raise error
        assert note(folder) == ""


def test_a_block_inside_a_block_adds_nothing(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    with hold_folder(folder):
        with hold_folder(str(link)):
            pass
        assert note(folder)
    assert note(folder) == ""


def test_a_forked_process_does_not_hold_what_its_parent_holds(tmp_path):
    script = (
        "import os, sys\n"
        "from pmsn_plugins.training.lock import hold_folder\n"
        "with hold_folder(sys.argv[1]):\n"
        "    if os.fork() == 0:\n"
        "        try:\n"
        "            with hold_folder(sys.argv[1]): print('held twice', flush=True)\n"
        "        except OSError as error: print(error, flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    process = start(script, tmp_path, launcher=("-c",))
    out, err = process.communicate(timeout=60)
    assert re.search(held_by(process), out), err


@pytest.mark.parametrize("text", ["", "{}", "null", "not by us", '{"pid": 3}', "\x00"])
def test_notes_that_say_nothing(holder, tmp_path, text):
    (tmp_path / lock.LOCK).write_text(text)
    with pytest.raises(FolderInUseError, match="is in use by another process: wait"), hold_folder(tmp_path):
        pass


def test_file_systems_that_cannot_lock(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    advice = r"cannot be locked \(.*No locks available\): start no second run in it"
    with pytest.warns(UserWarning, match=advice), hold_folder(tmp_path):
        pass


def test_folders_that_cannot_be_held(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"), hold_folder(tmp_path / "file"):
        pass
    for folder in (None, 3, ["runs"]):
        with pytest.raises(TypeError, match="folder must be a path, got"), hold_folder(folder):
            pass


def test_a_trainer_does_not_write_into_a_folder_that_is_held(one_holder, tmp_path):
    from pmsn_plugins.datasets import synthetic_source
    from pmsn_plugins.models import feedforward, neuron_factory
    from pmsn_plugins.training import Trainer
    from pmsn_plugins.training.distributed import Process

    net = feedforward((4, 6, 5), neuron_factory("tclif"))
    settings = Settings("synthetic", "feedforward", epochs=1, batch_size=8)
    source = synthetic_source((6, 4), 5, samples=16)
    trainer = Trainer(net, source, settings, tmp_path, Process(0, 1, torch.device("cpu")), quiet=True)
    before = [p.clone() for p in net.parameters()]
    one_holder.hold(tmp_path)
    with pytest.raises(FolderInUseError, match=held_by(one_holder)):
        trainer.fit()
    assert sorted(os.listdir(tmp_path)) == [lock.LOCK]
    assert all(map(torch.equal, before, net.parameters()))
    one_holder.release()
    trainer.fit()
    assert (tmp_path / "last.pt").exists() and note(tmp_path) == ""


def test_the_second_command_in_a_folder_says_who_holds_it(tmp_path, capsys):
    args = [*COMMAND, "--epochs", 500, "--save-every", 2, "--workers", 1, "--output-dir", tmp_path]
    first = start(*args, start_new_session=True)
    try:
        wait_until((tmp_path / "last.pt").exists, first)
        refused = f"FolderInUseError: {tmp_path} {held_by(first)}"
        assert train.main([*COMMAND, "--epochs", "500", "--resume", "--output-dir", str(tmp_path)]) == 1
        assert re.search(refused, capsys.readouterr().err)
        job = start(*COMMAND, "--output-dir", tmp_path, launcher=TORCHRUN)
        _, err = job.communicate(timeout=120)
        assert job.returncode == 1 and re.search(refused, err), err
        snapshot.load(tmp_path / "last.pt")  # whole, and still being written
        first.kill()  # not the process that loads its data, which lives on
        first.wait(timeout=60)
        progress = snapshot.load(tmp_path / "last.pt")["progress"]  # now, or it may be the first that has gone on
        again = start(*args, "--resume", start_new_session=True)

        def goes_on():
            now = snapshot.load(tmp_path / "last.pt")["progress"]
            return (now["epoch"], now["step"]) > (progress["epoch"], progress["step"] + 20)

        wait_until(goes_on, again)
        again.send_signal(signal.SIGTERM)
        _, err = again.communicate(timeout=60)
        assert again.returncode == 0 and f"process {first.pid} on" in err and "was killed: taking it over" in err
        assert note(tmp_path) == ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)


def test_commands_that_start_at_once_do_not_lose_a_checkpoint(tmp_path):
    """Without the lock, two of them die when one has moved the file that both were writing."""
    args = [*COMMAND, "--epochs", 8, "--save-every", 1, "--output-dir", tmp_path]
    runs = [start(*args) for _ in range(3)]
    results = [run.communicate(timeout=300) for run in runs]
    won = [run for run in runs if run.returncode == 0]
    assert len(won) == 1, results
    for run, (_, err) in zip(runs, results, strict=True):
        if run not in won:  # one that came when all was over found the finished run
            assert re.search(f"{held_by(won[0])}|exists: continue that run with --resume", err), err
            assert err.count("\n") == 1
    assert snapshot.load(tmp_path / "last.pt")["progress"]["epoch"] == 8
    assert sorted(os.listdir(tmp_path)) == [".lock", "best.pt", "curve.csv", "last.pt", "result.json"]
    assert note(tmp_path) == ""
