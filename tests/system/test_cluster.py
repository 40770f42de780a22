"""The Ray that qedge starts, joins and ends: on real clusters, two at once, and with nothing left behind."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import environment
from actors.cluster import ClusterRecord, connect, head, serve_starting, serve_url, start_head, status, stop_head
from actors.serving import start_serve
from qedge.config import Settings, load
from qedge.errors import AddressUnreachable, Failed, InvalidConfig, PortInUse
from qedge.ports import refuse_taken_port
from tests.endpoint import eventually, free_port

ASK = """
import json, os, sys
from actors.cluster import connect
from qedge.config import Settings
settings = Settings.model_validate_json(sys.argv[1])
with connect(settings, start=sys.argv[2] == "start") as connection:
    import ray
    names = ("IN_QEDGE_CLUSTER", "RAY_SERVE_ENABLE_HA_PROXY")
    inside = ray.get(ray.remote(lambda: {name: os.environ.get(name) for name in names}).remote())
    print(json.dumps({"address": connection.address, "private": connection.private, "cpus": ray.cluster_resources()["CPU"], **inside}))
print(json.dumps({"left": [name for name in os.environ if name.startswith(("RAY_AUTH", "RAY_SERVE", "IN_QEDGE"))]}))
"""

PASSWORD = "hunter2-of-the-database"


def settings_of(home: Path, **changes: object) -> Settings:
    small = {"cpus": 1, "object_store_bytes": 100 * 2**20}
    return load(environ={}, home=home, serve={"port": free_port()}, cluster=small, **changes)


def hasty(settings: Settings, **timeouts_s: float) -> Settings:
    """The same with less patience."""
    return settings.model_copy(update={"cluster": settings.cluster.model_copy(update=timeouts_s)})


def ask(settings: Settings, mode: str = "join", **variables: str) -> tuple[dict[str, object], dict[str, object]]:
    """What a process of its own sees of the cluster, and what the connection leaves in its environment."""
    import json

    command = [sys.executable, "-c", ASK, settings.model_dump_json(), mode]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | variables).stdout.splitlines()
    return json.loads(lines[-2]), json.loads(lines[-1])


class TestWithoutRay:
    def test_nothing_running_and_not_asked_to_start_is_unreachable(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        assert status(settings) == {"cluster": "not running"}
        assert not stop_head(settings)
        with pytest.raises(AddressUnreachable, match="qedge start"):
            connect(settings, start=False)

    @pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "host:0", "host:99999", "ray://host:10001", "http://host:1"])
    def test_an_address_that_is_none_is_an_invalid_setting(self, tmp_path: Path, address: str) -> None:
        with pytest.raises(InvalidConfig, match="HOST:PORT"):
            connect(settings_of(tmp_path, address=address), start=True)

    @pytest.mark.parametrize("behaviour", ["closed", "silent", "chatty", "hangs up"])
    def test_an_address_where_no_ray_answers_is_unreachable_in_time(self, tmp_path: Path, behaviour: str) -> None:
        with socket.socket() as other, ThreadPoolExecutor(1) as pool:
            other.bind(("127.0.0.1", 0))
            port = other.getsockname()[1]
            if behaviour != "closed":
                other.listen()
            if behaviour in ("chatty", "hangs up"):
                pool.submit(_answer_once, other, b"HTTP/1.1 400 Bad Request\r\n\r\n" if behaviour == "chatty" else b"")
            begun = time.monotonic()
            with pytest.raises(AddressUnreachable, match="no Ray answers"):
                connect(hasty(settings_of(tmp_path, address=f"127.0.0.1:{port}"), connect_timeout_s=3), start=True)
            assert time.monotonic() - begun < 15, "the 3 s asked for, and Ray's own imports"
            other.close()

    def test_a_record_of_a_cluster_that_is_gone_is_not_believed(self, tmp_path: Path) -> None:
        """Its process id may belong to somebody else by now: this very process stands for that."""
        settings = settings_of(tmp_path)
        record = ClusterRecord(address="127.0.0.1:1", pid=os.getpid(), folder=tmp_path / "gone", serve_url=None)
        (tmp_path / "cluster.json").write_text(record.model_dump_json())
        assert head(settings) is None
        assert stop_head(settings)
        assert not (tmp_path / "cluster.json").exists()

    @given(content=st.binary(max_size=100))
    def test_a_record_that_cannot_be_read_is_no_cluster(self, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        home = tmp_path_factory.mktemp("home")
        (home / "cluster.json").write_bytes(content)
        assert head(settings_of(home)) is None

    def test_a_port_in_use_refuses_to_serve_before_anything_starts(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            settings = load(environ={}, home=tmp_path, serve={"port": taken.getsockname()[1]})
            with pytest.raises(PortInUse, match=r"serve\.port"):
                start_head(settings, serve=True)
        assert head(settings) is None
        assert not (tmp_path / "cluster.log").exists()

    def test_a_host_that_is_not_this_machine_is_an_invalid_setting(self) -> None:
        with pytest.raises(InvalidConfig, match="no address of this machine"):
            refuse_taken_port("192.0.2.77", 8000)

    def test_a_token_is_made_once_and_nobody_else_may_read_it(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: environment.token_environment(settings), range(32)))
        path = environment.token_path(settings)
        token = path.read_text()
        assert len(bytes.fromhex(token)) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert all(one == made[0] for one in made)
        assert [one.name for one in path.parent.iterdir()] == [path.name], "no half-made token is left"
        assert environment.token_path(settings_of(tmp_path / "other")) != path

    def test_two_clusters_share_no_port_and_no_socket(self, tmp_path: Path) -> None:
        folders = [environment.new_folder() for _ in range(2)]
        try:
            one, other = (environment.cluster_environment(settings_of(tmp_path), folder) for folder in folders)
            fixed = [name for name in one if "PORT" in name or "HAPROXY" in name]
            assert len(fixed) >= 10
            assert all(one[name] != other[name] for name in fixed if "DIRECT_INGRESS" not in name)
            longest = max(len(str(value)) for name, value in one.items() if "SOCKET" in name) + len("/") + 56 + len(".99999.tmp")
            assert longest <= 107, "HAProxy adds the node's id and a suffix, and a socket's path may not be longer"
        finally:
            for folder in folders:
                shutil.rmtree(folder)

    def test_folders_that_nobody_ended_are_removed_and_no_others(self) -> None:
        """What is too young, belongs to a living process, or was not made by us, stays."""
        forgotten, young, living, foreign = (environment.new_folder() for _ in range(4))
        link = forgotten.with_name(forgotten.name + "-link")
        link.symlink_to(young)
        (foreign / environment.MARK).unlink()
        (young / "session" / "logs").mkdir(parents=True)
        (forgotten / "log").write_text("the last words")
        hours_ago = time.time() - 7200
        for folder in (forgotten, young, living, foreign):
            for path in (*folder.rglob("*"), folder):
                os.utime(path, (hours_ago, hours_ago))
        os.utime(young / "session" / "logs")
        waiting = [sys.executable, "-c", "input()"]
        with subprocess.Popen(waiting, stdin=subprocess.PIPE, env=os.environ | {environment.MARK: str(living)}) as process:
            try:
                environment.remove_abandoned()
                assert [one.exists() for one in (forgotten, young, living, foreign, link)] == [False, True, True, True, True]
            finally:
                process.communicate(b"\n")
                link.unlink()
                for folder in (young, living, foreign):
                    shutil.rmtree(folder)

    def test_the_url_of_an_endpoint_is_one_a_browser_takes(self, tmp_path: Path) -> None:
        for host, url in (("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")):
            assert serve_url(load(environ={}, home=tmp_path, serve={"host": host, "port": 80})) == url

    def test_the_environment_is_put_back_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QE_A", "1")
        monkeypatch.delenv("QE_B", raising=False)
        before = environment.put_environment({"QE_A": None, "QE_B": "2"})
        assert ("QE_A" in os.environ, os.environ["QE_B"]) == (False, "2")
        environment.put_environment(before)
        assert (os.environ["QE_A"], "QE_B" in os.environ) == ("1", False)


def _answer_once(listening: socket.socket, content: bytes) -> None:
    try:
        connection, _ = listening.accept()
    except OSError:
        return
    with connection:
        connection.sendall(content)


@pytest.mark.slow
def test_a_port_that_is_taken_while_serve_starts_costs_the_endpoint_and_not_the_ray(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    try:
        with socket.socket() as taken:
            record = start_head(settings)
            taken.bind(("127.0.0.1", settings.serve.port))  # Serve is still coming up
            taken.listen()
            assert record.serve_url is not None
            with serve_starting(settings):
                pass
            after = head(settings)
            assert after == record.model_copy(update={"serve_url": None, "serve_host": None})
            assert "PortInUse" in (tmp_path / "cluster.log").read_text() or "Failed to bind" in (tmp_path / "cluster.log").read_text()
            with connect(settings, start=False):
                with pytest.raises(PortInUse, match=str(settings.serve.port)):
                    start_serve(settings)
                taken.close()
                start_serve(settings)
        socket.create_connection(("127.0.0.1", settings.serve.port), timeout=10).close()
    finally:
        stop_head(settings)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Settings, ClusterRecord]]]:
    """Two homes on one machine, their clusters started at once."""
    homes = [settings_of(tmp_path_factory.mktemp(f"home{at}"), tracking_uri=f"postgresql://q:{PASSWORD}@db/q") for at in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            records = list(pool.map(start_head, homes))
        for one in homes:
            with serve_starting(one):
                pass
        yield list(zip(homes, records, strict=True))
    finally:
        for one in homes:
            stop_head(one)


@pytest.mark.slow
class TestTwoAtOnce:
    def test_both_serve_at_their_own_port_and_know_their_own(self, two: list[tuple[Settings, ClusterRecord]]) -> None:
        assert two[0][1].address != two[1][1].address
        for settings, record in two:
            assert head(settings) == record
            with serve_starting(settings):  # the endpoint comes up behind this lock
                pass
            socket.create_connection(("127.0.0.1", settings.serve.port), timeout=10).close()
            haproxy = [process for process in environment.processes_of(record.folder) if process.name() == "haproxy"]
            assert haproxy  # two for a moment, while it takes up a new configuration

    def test_a_password_in_the_settings_is_on_no_command_line(self, two: list[tuple[Settings, ClusterRecord]]) -> None:
        lines = [" ".join(process.cmdline()) for _, record in two for process in environment.processes_of(record.folder)]
        assert any("actors.head" in line for line in lines)
        assert not [line for line in lines if PASSWORD in line]

    def test_starting_again_says_where_it_is(self, two: list[tuple[Settings, ClusterRecord]]) -> None:
        settings, record = two[0]
        assert start_head(settings) == record

    def test_a_process_joins_its_home_s_cluster_and_leaves_its_environment_as_it_was(
        self, two: list[tuple[Settings, ClusterRecord]]
    ) -> None:
        settings, record = two[1]
        seen, after = ask(settings)
        assert (seen["address"], seen["private"], seen["cpus"]) == (record.address, False, 1.0)
        assert seen["IN_QEDGE_CLUSTER"] == str(record.folder)
        assert seen["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert after == {"left": []}

    def test_a_stranger_s_token_is_refused_at_once(self, two: list[tuple[Settings, ClusterRecord]], tmp_path: Path) -> None:
        (one, first), (other, _) = two
        token = environment.token_path(other).read_text()
        for presented in (token, "0" * 64, None):
            begun = time.monotonic()
            with pytest.raises(AddressUnreachable, match="refuses our token"):
                environment.ask_alive(first.address, presented, 5)
            assert time.monotonic() - begun < 5
        assert environment.ask_alive(first.address, environment.token_path(one).read_text(), 5)

    def test_an_address_is_joined_with_the_token_the_environment_names(
        self, two: list[tuple[Settings, ClusterRecord]], tmp_path: Path
    ) -> None:
        owner, record = two[0]
        guest = settings_of(tmp_path, address=record.address)
        seen, _ = ask(guest, RAY_AUTH_TOKEN_PATH=str(environment.token_path(owner)))
        assert seen["address"] == record.address

    def test_stopping_one_leaves_nothing_of_it_and_all_of_the_other(
        self, tmp_path: Path, two: list[tuple[Settings, ClusterRecord]]
    ) -> None:
        """By the tree of processes under the head, taken before, not by the mark that stopping goes by."""
        mine = settings_of(tmp_path)
        record = start_head(mine)
        with serve_starting(mine):
            tree = [psutil.Process(record.pid), *psutil.Process(record.pid).children(recursive=True)]
        assert {"gcs_server", "raylet", "haproxy"} <= {process.name() for process in tree}
        others = [process for _, other in two for process in environment.processes_of(other.folder)]
        assert stop_head(mine)
        gone = [process for process in tree if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert gone == []
        assert not record.folder.exists()
        assert not (tmp_path / "cluster.json").exists()
        assert all(process.is_running() for process in others if process.name() in ("gcs_server", "raylet", "haproxy"))
        assert not stop_head(mine)


@pytest.mark.slow
class TestTrouble:
    def test_a_head_that_was_killed_is_replaced_and_its_leftovers_are_ended(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        first = start_head(settings)

        def gone() -> bool:
            try:
                return head(settings) is None
            except AddressUnreachable:  # while it goes down it may live and not answer
                return False

        try:
            psutil.Process(first.pid).kill()
            assert eventually(gone)
            second = start_head(settings)
            assert second.pid != first.pid
            assert environment.processes_of(first.folder) == []
            assert not first.folder.exists()
            assert ask(settings)[0]["address"] == second.address
        finally:
            stop_head(settings)

    def test_a_cluster_too_busy_to_answer_is_neither_replaced_nor_ended(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        record = start_head(settings)
        try:
            (gcs,) = [process for process in environment.processes_of(record.folder) if process.name() == "gcs_server"]
            gcs.suspend()
            busy = hasty(settings, connect_timeout_s=0.5)
            for ask_it in (head, start_head, lambda given: connect(given, start=True)):
                with pytest.raises(AddressUnreachable, match=rf"process {record.pid}\) runs at {record.address} and does not answer"):
                    ask_it(busy)
            assert "does not answer" in str(status(busy)["cluster"])
            gcs.resume()
            assert start_head(settings) == record
            assert head(settings) == record
        finally:
            assert stop_head(settings)

    def test_two_processes_that_start_at_once_get_one_cluster(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        code = "import sys; from actors.cluster import start_head; from qedge.config import Settings; "
        code += "print(start_head(Settings.model_validate_json(sys.argv[1])).model_dump_json())"
        command = [sys.executable, "-c", code, settings.model_dump_json()]
        try:
            started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            said = {one.communicate()[0] for one in started}
            assert len(said) == 1
        finally:
            assert stop_head(settings)

    def test_a_start_that_takes_too_long_leaves_nothing(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        with pytest.raises(Failed, match="start_timeout_s"):
            start_head(hasty(settings, start_timeout_s=0.5))
        assert _of_home(tmp_path) == []
        assert head(settings) is None

    def test_a_private_cluster_is_of_one_process_and_ends_with_it(self, tmp_path: Path) -> None:
        seen, after = ask(settings_of(tmp_path), "start")
        assert seen["private"]
        assert after == {"left": []}
        folder = Path(str(seen["IN_QEDGE_CLUSTER"]))
        assert environment.processes_of(folder) == []
        assert not folder.exists()
        assert head(settings_of(tmp_path)) is None


def _of_home(home: Path) -> list[psutil.Process]:
    """Living processes that were given the token of this home, however they were started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_AUTH_TOKEN_PATH", "").startswith(str(home)):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
