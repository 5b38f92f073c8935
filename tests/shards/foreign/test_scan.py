"""What a scan of one tar says of it: what it found, what it leaves out, and what is wrong, word for word."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.foreign import scan
from shards.foreign.scan import KEPT_TEXTS, LeftOut, Named, Scanned, escaped, listed, scan_tar
from shards.index import NO_MEMBER
from shards.layout import foreign_layout
from shards.manifest import THREE_VALUES
from tests.shards.foreign_tars import write_tar

LAYOUT = foreign_layout("jpg", "seg.png", THREE_VALUES)
NO_SAMPLE = (
    "none of its 3 members is a picture (.jpg or .jpeg) or a mask (.seg.png); it has .txt, .png, such as of 'b'. A key "
    "ends at the first dot of a file's name: say with --image-suffix and --mask-suffix what follows it, or name the "
    "files otherwise"
)
Files = list[tuple[str, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.tar"


@pytest.fixture
def good(pair) -> Files:
    jpg, png = pair(0)
    return [("x/a.jpg", jpg), ("x/a.seg.png", png)]


def problems_of(path: Path, files: Files) -> list[str]:
    write_tar(path, files)
    scanned = scan_tar(path, LAYOUT)
    assert scanned == Scanned("train.tar", problems=scanned.problems)
    assert scanned.problems.count == len(scanned.problems.texts)
    return scanned.problems.texts


def test_what_a_good_tar_gives(path: Path, good: Files, pair) -> None:
    jpg, png = pair(1)
    facts = ("y/b.json", b"{}")
    notes = [("x/a.cls", b"1"), ("x/a.TXT", b"t"), ("README", b"r"), ("__index__/n.jpg", b"n"), ("z.info", b"i")]
    write_tar(path, [*good, *notes[:2], ("y/b.JPEG", jpg), ("y/b.SEG.PNG", png), facts, *notes[2:]])
    scanned = scan_tar(path, LAYOUT)
    assert (scanned.name, scanned.num_bytes) == ("train.tar", path.stat().st_size)
    assert scanned.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scanned.prefixes == ("x/a", "y/b")
    assert [sample.key for sample in scanned.samples] == ["a", "b"]
    data = path.read_bytes()
    found = [
        [data[m.offset : m.offset + m.num_bytes] for m in (s.jpg, s.png, s.json) if m != NO_MEMBER]
        for s in scanned.samples
    ]
    assert found == [[content for _, content in good], [jpg, png, b"{}"]]
    assert scanned.left_out == LeftOut(
        Counter({".cls": 1, ".TXT": 1, "without a suffix": 1, "under __NAME__, as webdataset names its notes": 1}),
        Named(["train.tar: 'z' has .info"], 1),
    )
    assert scanned.problems == Named()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda good: good[:1],
         "sample x/a has no mask (.seg.png), it has .jpg; --mask-suffix says which one it is"),
        (lambda good: good[1:],
         "sample x/a has no picture (.jpg or .jpeg), it has .seg.png; --image-suffix says which one it is"),
        (lambda good: [good[0], ("x/a.seg.png", b"no")], "sample x/a: a.png cannot be decoded (it is no PNG)"),
        (lambda good: [*good, good[0]], "x/a.jpg is the second jpg of its sample"),
        (lambda good: [*good, ("b.txt", b""), *good], "sample x/a is there twice"),
        (lambda good: [good[0], ("b.txt", b""), good[1]],
         "sample x/a has members that are not adjacent: webdataset cuts it in halves"),
        (lambda good: [("ä.jpg", good[0][1]), ("ä.seg.png", good[1][1])],
         "sample ä: the key 'ä' must match [A-Za-z0-9_-]+; name its files so"),
        (lambda good: [*good, (f"{'n' * 4097}.jpg", b"x")],
         f"a name of 4,101 characters, '{'n' * 40}'...: rename the file"),
        (lambda good: [("b.txt", b""), ("b.png", b""), ("c.txt", b"")],
         NO_SAMPLE),
        (lambda good: [], "it has no members, only the mark of a tar's end: remove it, or pack it again"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_once(path: Path, good: Files, change: Callable[[Files], Files], problem: str) -> None:
    assert problems_of(path, change(good)) == [f"train.tar: {problem}"]


def test_a_name_may_be_as_long_as_linux_takes(path: Path, good: Files) -> None:
    write_tar(path, [*good, (f"{'n' * 4092}.jpg", b"x")])
    (problem,) = scan_tar(path, LAYOUT).problems.texts
    assert problem.startswith(f"train.tar: sample {'n' * 4092} has no mask (")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a link"), (tarfile.SYMTYPE, "a link"), (tarfile.FIFOTYPE, "no file"),
        (tarfile.CHRTYPE, "no file"),
    ],
)  # fmt: skip
def test_a_picture_is_a_file(path: Path, good: Files, kind: bytes, what: str) -> None:
    write_tar(path, good)
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = kind, "x/a.jpg"
        tar.addfile(info)
    advice = "pack the shard again, as with tar --hard-dereference --dereference"
    assert scan_tar(path, LAYOUT).problems.texts == [f"train.tar: b.jpg is {what}: {advice}"]


def test_folders_are_no_members_and_other_things_may_be_anything(path: Path, good: Files) -> None:
    write_tar(path, good)
    with tarfile.open(path, "a") as tar:
        for name, kind in (("b.jpg", tarfile.DIRTYPE), ("c.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    scanned = scan_tar(path, LAYOUT)
    assert (scanned.problems.count, len(scanned.samples)) == (0, 1)
    assert scanned.left_out.samples.texts == ["train.tar: 'c' has .txt"]


@pytest.mark.parametrize("kind", ["jpg", "seg.png", "json"])
def test_a_member_has_a_largest_size(path: Path, good: Files, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    size = max(len(content) for _, content in good)
    monkeypatch.setattr(scan, "MAX_MEMBER_BYTES", size)
    write_tar(path, [*good, ("x/a.json", bytes(size)), ("x/a.txt", bytes(size + 1))])
    assert scan_tar(path, LAYOUT).problems.count == 0
    files = [(name, bytes(size + 1) if name == f"x/a.{kind}" else content) for name, content in good]
    files += [("x/a.json", bytes(size + 1))] if kind == "json" else []
    what = {"seg.png": "png"}.get(kind, kind)
    said = f"train.tar: x/a.{kind} has {size + 1:,} bytes, more than {size:,}: it is no {what} of a sample"
    assert problems_of(path, files) == [said]


@pytest.mark.parametrize(
    ("start", "what"), [(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_a_compressed_tar_is_known_by_its_first_bytes(path: Path, start: bytes, what: str) -> None:
    advice = "petseg reads by byte offset; uncompress it and index again"
    path.write_bytes(start + bytes(600))
    assert scan_tar(path, LAYOUT) == Scanned(
        "train.tar", problems=Named([f"train.tar: compressed with {what}: {advice}"], 1)
    )
    path.write_bytes(b"")
    assert scan_tar(path, LAYOUT).problems == Named(["train.tar: it is empty"], 1)
    path.unlink()
    path.mkdir()
    assert scan_tar(path, LAYOUT).problems == Named([f"{path} is a folder, not a regular file"], 1)


def test_what_two_tars_leave_out_is_added_up() -> None:
    one = LeftOut(Counter({".txt": 2, ".cls": 1}), Named(["a"], 2))
    other = LeftOut(Counter({".txt": 5}), Named(["b"], 1))
    assert one + other == LeftOut(Counter({".txt": 7, ".cls": 1}), Named(["a", "b"], 3))


def test_texts_are_kept_to_a_limit_and_counted_beyond_it() -> None:
    one, other = Named(), Named()
    for number in range(KEPT_TEXTS + 5):
        one.add(f"{number}")
    other.add("\x1b\n")
    assert (len(one.texts), one.texts[-1], one.count) == (100, "99", 105)
    assert other == Named(["\\x1b\\n"], 1)
    assert one + other == Named(one.texts, 106)
    assert (other + one).texts == ["\\x1b\\n", *one.texts[:99]]
    assert one.lines(2) == ["0", "1", "and 103 more"]
    assert other.lines(1) == other.lines(9) == ["\\x1b\\n"]
    assert Named(["a"] * 3, 1203).lines(0) == ["and 1,203 more"]


def test_the_commonest_suffixes_are_listed() -> None:
    counts = Counter({"a": 1, "b": 3, "c": 2, "d": 1, "e": 1})
    assert listed(counts) == ".b, .c, .a, .d, .e"
    assert listed(counts + Counter("f")) == ".b, .c, .a, .d, .e and 1 more kinds"
    assert listed(counts, most=2) == ".b, .c and 3 more kinds"
    assert escaped("aé\t\x7f\u202e") == "aé\\t\\x7f\\u202e"
