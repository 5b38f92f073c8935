"""The folder layout: splits, strays, and what is refused."""

import hashlib
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torchvision.datasets

from shards.sources.pets.oxford import Pet, download, read_folder


def test_splits_follow_the_index_in_the_list(odd) -> None:
    for index in range(25):
        odd.add(f"pug_{index}")
    odd.add("pug_100", name="test")
    by_split: dict[str, list[Pet]] = {}
    for pet in read_folder(odd.root).samples:
        by_split.setdefault(pet.split, []).append(pet)
    assert [pet.key for pet in by_split["val"]] == ["pug_0", "pug_10", "pug_20"]
    assert len(by_split["train"]) == 22
    assert [pet.key for pet in by_split["test"]] == ["pug_100"]


def test_comments_and_blank_lines_do_not_count(odd) -> None:
    odd.add("pug_1")
    odd.write_list("trainval", ["# KEY CLASS SPECIES BREED", "", "pug_1 26 2 18"])
    (pet,) = read_folder(odd.root).samples
    assert (pet.split, pet.class_id, pet.breed, pet.species) == ("val", 26, "pug", "dog")


def test_every_tenth_pet_is_validation_whatever_stands_between_the_lines(odd) -> None:
    keys = [f"pug_{index}" for index in range(12)]
    for key in keys:
        odd.add(key)
    odd.write_list("trainval", ["# the first"] + [line for key in keys[:11] for line in (f"{key} 1 1 1", "", "#")])
    odd.write_list("test", [f"{keys[11]} 1 1 1"])
    assert {pet.key: pet.split for pet in read_folder(odd.root).samples} == (
        dict.fromkeys(keys, "train") | {"pug_0": "val", "pug_10": "val", "pug_11": "test"}
    )


def test_a_pet_knows_its_files_and_facts(odd) -> None:
    odd.add("Great_Pyrenees_12")
    odd.add("pug", name="test")
    odd.write_list("trainval", ["Great_Pyrenees_12 9 2 4"])
    first, second = read_folder(odd.root).samples
    assert first.files() == (odd.picture(first.key), odd.trimap(first.key))
    assert first.row() == ["Great_Pyrenees_12", "val", 9, "Great_Pyrenees", "dog"]
    assert first.facts() == {"class_id": 9, "breed": "Great_Pyrenees", "species": "dog"}
    assert second.facts() == {"class_id": 1, "breed": "pug", "species": "cat"}  # a key without a number


def test_the_parent_folder_will_do(odd) -> None:
    odd.add("pug_1")
    assert read_folder(odd.root.parent) == read_folder(odd.root)
    shutil.copytree(odd.root, odd.root.parent / "other")
    with pytest.raises(ValueError, match="with it: odd, other"):
        read_folder(odd.root.parent)
    marker = Path("annotations") / "trainval.txt"
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        read_folder(odd.root / "images")
    assert str(error.value) == (
        f"{odd.root / 'images'} has no {marker}, nor has exactly one of its folders (with it: none)"
    )


def test_extra_files_are_counted_and_left_out(odd) -> None:
    odd.add("pug_1")
    extras = (
        "images/._pug_1.jpg", "images/a.mat", "images/pug_9.jpg", "images/pug_1", "images/Thumbs.db",
        "annotations/trimaps/x.png",
    )  # fmt: skip
    for name in extras:
        (odd.root / name).write_bytes(b"")
    folder = read_folder(odd.root)
    assert len(folder.samples) == 1
    assert folder.oddities == {
        "apple_double": ("._pug_1.jpg",),
        "other_file": ("Thumbs.db", "pug_1"),
        "mat_file": ("a.mat",),
        "unlisted_picture": ("pug_9.jpg",),
        "unlisted_trimap": ("x.png",),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pug.1 1 1 1", r"trainval\.txt:2: key 'pug\.1' must match"),
        ("../pug 1 1 1", "must match"),
        (f"{'p' * 91} 1 1 1", "at most 90 letters"),
        ("pug_1 1 1", "is not `KEY CLASS-ID SPECIES"),
        ("pug_1 one 1 1", "is not `KEY CLASS-ID SPECIES"),
        ("pug_1 1 3 1", "is not `KEY CLASS-ID SPECIES"),
        ("pug_0 1 1 1", r"trainval\.txt:2: key 'pug_0' is listed twice, first at .*trainval\.txt:1"),
    ],
)
def test_a_bad_line_is_named(odd, line: str, message: str) -> None:
    odd.add("pug_0")
    odd.write_list("trainval", ["pug_0 1 1 1", line])
    with pytest.raises(ValueError, match=message):
        read_folder(odd.root)


def test_a_key_may_have_as_many_letters_as_a_header_takes(odd) -> None:
    odd.add("p" * 90)
    assert [pet.key for pet in read_folder(odd.root).samples] == ["p" * 90]


def test_a_test_picture_must_not_be_trained_on(odd) -> None:
    odd.add("pug_0")
    odd.write_list("test", ["pug_0 1 1 1"])
    with pytest.raises(ValueError, match=r"test\.txt:1: key 'pug_0' is listed twice, first at .*trainval\.txt:1"):
        read_folder(odd.root)


def test_missing_files_are_named(odd) -> None:
    for index in range(8):
        odd.add(f"pug_{index}")
    odd.trimap("pug_3").unlink()
    with pytest.raises(ValueError, match=r"missing trimap: .*pug_3\.png$"):
        read_folder(odd.root)
    for index in range(5):
        odd.picture(f"pug_{index}").unlink()
    with pytest.raises(ValueError, match=r"missing picture: .*pug_0\.jpg, .*pug_4\.jpg$"):
        read_folder(odd.root)
    for index in range(5, 7):
        odd.picture(f"pug_{index}").unlink()
    with pytest.raises(ValueError, match=r"missing picture: .*pug_0\.jpg, .*pug_4\.jpg and 2 more$"):
        read_folder(odd.root)
    shutil.rmtree(odd.root / "images")
    with pytest.raises(ValueError, match="images is missing"):
        read_folder(odd.root)


def test_missing_lists_are_named(odd, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are empty"):
        read_folder(odd.root)
    odd.add("pug_0")
    (odd.root / "annotations" / "test.txt").unlink()
    with pytest.raises(ValueError, match=r"test\.txt is missing"):
        read_folder(odd.root)
    with pytest.raises(ValueError, match="is not a folder"):
        read_folder(tmp_path / "nowhere")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def archives(odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """torchvision's two archives, small, on a web server of our own."""
    odd.add("pug_0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(QuietHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    resources = []
    for half in ("images", "annotations"):
        path = tmp_path / f"{half}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(odd.root / half, half)
        resources.append(
            (f"http://127.0.0.1:{server.server_port}/{path.name}", hashlib.md5(path.read_bytes()).hexdigest())
        )
    monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "_RESOURCES", tuple(resources))
    yield tmp_path
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Python 3.14 will")  # torchvision's extraction, on Python 3.12
def test_download_appears_whole(archives: Path) -> None:
    root = archives / "data"
    (root / ".download" / "oxford-iiit-pet" / "images").mkdir(parents=True)  # a killed extraction:
    (root / ".download" / "oxford-iiit-pet" / "annotations").mkdir()  # torchvision alone would believe it
    assert [pet.key for pet in read_folder(download(root)).samples] == ["pug_0"]
    assert [path.name for path in root.iterdir()] == ["oxford-iiit-pet"]
    assert sorted(path.name for path in (root / "oxford-iiit-pet").iterdir()) == ["annotations", "images"]  # no archive
    (archives / "images.tar.gz").unlink()
    assert download(root) == root / "oxford-iiit-pet"  # nothing is fetched twice


def test_download_without_network_says_what_to_do(archives: Path) -> None:
    (archives / "images.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"cannot download Oxford-IIIT Pet .*--synthetic 400"):
        download(archives / "data")
    assert not (archives / "data" / "oxford-iiit-pet").exists()


def test_lists_of_other_editors(odd) -> None:
    """Notepad's UTF-8 begins with a mark (BOM), its Unicode is UTF-16."""
    odd.add("pug_1")
    path = odd.root / "annotations" / "trainval.txt"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert [pet.key for pet in read_folder(odd.root).samples] == ["pug_1"]
    path.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"trainval\.txt is not UTF-8 \(.*\): save the list as UTF-8"):
        read_folder(odd.root)


def test_the_source_is_the_files_where_there_is_one(odd) -> None:
    odd.add("pug_1")
    assert read_folder(odd.root).source.name == "oxford-iiit-pet"
    path = odd.root / "source.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"name": "mine", "attribution": "me"}')  # with an editor's mark
    assert (read_folder(odd.root).source.name, read_folder(odd.root).source.attribution) == ("mine", "me")


@pytest.mark.parametrize("content", [b"[]", b'{"name": "mine"}', b"{", b'{"name": "\xff", "attribution": "me"}'])
def test_a_source_that_is_none_is_named(odd, content: bytes) -> None:
    odd.add("pug_1")
    (odd.root / "source.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"source\.json must be an object with name and attribution: "):
        read_folder(odd.root)
