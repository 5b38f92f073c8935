"""Sizes and settings at their limits, and the configuration texts that follow from them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from slurm.rehearsal.conf import Blueprint, free_ports, render_gres_conf, render_hosts, render_slurm_conf
from slurm.rehearsal.conf import render_slurmdbd_conf as render_slurmdbd
from slurm.rehearsal.settings import NODES, Site, parse_conf, settings_of
from tests.slurm.rehearsal.test_rehearsal import blueprint


@pytest.mark.parametrize("size", [{"nodes": 1}, {"nodes": 200}, {"cpus": 1}, {"gpus": 0}])
def test_the_smallest_and_the_largest_site(size: dict[str, int]) -> None:
    assert {name: getattr(Site(**size), name) for name in size} == size


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"nodes": 201}, "nodes=201: a rehearsal has 1 to 200 nodes"),
        ({"gpus": -1}, "cpus=4, gpus=-1: too few"),
        ({"cpus": 0}, "cpus=0, gpus=2: too few"),
    ],
)
def test_impossible_sites(size: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Site(**size)


def test_settings_are_read_with_their_section() -> None:
    conf = parse_conf([" MaxArraySize = 10 ", "low.GraceTime=300", "low.Nodes=", "nodes.Features=a,b"])
    assert conf == {"MaxArraySize": "10", "low.GraceTime": "300", "low.Nodes": "", "nodes.Features": "a,b"}
    assert settings_of("", conf) == {"MaxArraySize": "10"}
    assert settings_of("low", conf) == {"GraceTime": "300", "Nodes": ""}
    assert settings_of(NODES, conf) == {"Features": "a,b"}
    assert settings_of("gpu", conf) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("A=1 # no", "--conf 'A=1 # no': a setting is one line, without a comment"),
        (".A=1", "--conf .A=1: must be KEY=VALUE, PARTITION.KEY=VALUE or nodes.KEY=VALUE, such as MaxArraySize=10"),
        ("1A=1", "--conf 1A=1: must be KEY=VALUE"),
        ("A B=1", "--conf A B=1: must be KEY=VALUE"),
    ],
)
def test_what_is_no_setting(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_conf([word])


@pytest.mark.parametrize("key", ["low.NodeName", "Include", "nodes.State", "low.SlurmdPort", "SlurmctldPort"])
def test_what_the_rehearsal_sets_itself_is_its_own_in_any_section(key: str) -> None:
    name = key.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"^--conf {key}: the rehearsal sets {name} itself"):
        Site(conf={key: "x"})


def test_a_key_of_the_nodes_is_free_elsewhere() -> None:
    assert Site(conf={"low.State": "DOWN", "nodes.SlurmdTimeout": "3"}).conf["low.State"] == "DOWN"


def test_a_second_partition_is_named_in_the_refusal() -> None:
    with pytest.raises(ValueError, match=r"^--partitions day day: name each partition once, the default one first$"):
        Site(partitions=("day", "day"))
    with pytest.raises(ValueError, match=r"^--partitions All: must be a word of .*, other than nodes$"):
        Site(partitions=("day", "All"))


def test_a_port_for_each_daemon() -> None:
    of_all = Blueprint(
        Path("/r"), Site(nodes=2, accounting=True), namespaces=True, ports=(1, 2, 3, 4), host="here", user="me"
    )
    lines = render_slurm_conf(of_all).splitlines()
    assert [line for line in lines if line.startswith("SlurmctldPort=")] == ["SlurmctldPort=1"]
    assert [line.split()[3] for line in lines if line.startswith("NodeName=")] == ["Port=2", "Port=3"]
    assert "AccountingStoragePort=4" in lines
    assert "DbdPort=4" in render_slurmdbd(of_all).splitlines()
    with pytest.raises(AssertionError, match="one port for each daemon"):
        blueprint(ports=(1, 2, 3, 4))


def test_without_accounting_there_is_none() -> None:
    lines = [line for line in render_slurm_conf(blueprint()).splitlines() if line.startswith("Accounting")]
    assert lines == ["AccountingStorageType=accounting_storage/none"]


@pytest.mark.parametrize(
    ("conf", "is_tracked"),
    [
        ({"AccountingStorageEnforce": "all"}, True),
        ({"accountingstorageenforce": "LIMITS,WCKEYS"}, True),
        ({"TrackWCKey": "YES"}, True),
        ({"TrackWCKey": "no"}, False),
        ({"AccountingStorageEnforce": "limits"}, False),
        ({"low.TrackWCKey": "yes"}, False),
    ],
)
def test_whether_the_database_tracks_wckeys(conf: dict[str, str], is_tracked: bool) -> None:
    (line,) = [line for line in render_slurmdbd(blueprint(conf=conf)).splitlines() if "TrackWCKey" in line]
    assert line == f"TrackWCKey={'yes' if is_tracked else 'no'}"


def test_files_of_make_believe_gpus() -> None:
    assert render_gres_conf(blueprint(namespaces=False, gpus=2)).splitlines() == [
        f"NodeName={node} Name=gpu Type=fake File=/r/dev/{node}-gpu{number}"
        for node in ("127.0.0.11", "127.0.0.12")
        for number in (0, 1)
    ]


def test_the_machines_own_hosts_stay_above_those_of_the_nodes() -> None:
    assert render_hosts(blueprint(nodes=1, ports=(1, 2)), "127.0.0.1 localhost\n\n") == (
        "127.0.0.1 localhost\n127.0.0.11 node1\n"
    )


def test_a_path_may_be_as_long_as_a_socket_allows() -> None:
    longest = "/" + "r" * (107 - len("/munge/socket") - 1)
    assert len(str(blueprint(longest).socket)) == 107
    with pytest.raises(ValueError, match=r"^--root /r+ is too long for a Unix socket; choose a shorter one$"):
        blueprint(longest + "r")


def test_ports_in_use_are_passed_over() -> None:
    with socket.socket() as taken:
        (first,) = free_ports(1)
        taken.bind(("", first))
        taken.listen()
        with pytest.raises(OSError, match=rf"^no 1 free TCP ports between {first} and {first + 1}$"):
            free_ports(1, first, first + 1)
    assert free_ports(1, first, first + 1) == (first,)


def test_each_partition_holds_all_nodes() -> None:
    lines = [line.split() for line in render_slurm_conf(blueprint()).splitlines() if line.startswith("PartitionName=")]
    common = ["Nodes=ALL", "MaxTime=INFINITE", "DefaultTime=10", "State=UP"]
    assert lines == [
        ["PartitionName=gpu", *common, "Default=YES", "PriorityTier=10", "PreemptMode=OFF"],
        ["PartitionName=low", *common, "PriorityTier=1", "PreemptMode=REQUEUE", "GraceTime=15"],
    ]
