"""Downloads: whole, cut, resumed, changed, refused; against a server on this machine."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
import urllib.request

import numpy as np
import pytest
from web_server import Server

import ssd_tf
from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault
from ssd_tf.pretrained import catalogue, download
from ssd_tf.pretrained.catalogue import Download

CONTENT = np.random.default_rng(3).integers(0, 256, 300_000, np.uint8).tobytes()
OTHER = CONTENT[:150_000][::-1] + CONTENT[150_000:]
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.invalid/models/net.pth?raw=1"
KNOWN = Download(URL, len(CONTENT), DIGEST)
BARE = Download(URL)
ELSEWHERE = "download it elsewhere and give --weights=FILE"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """No waiting between tries, and no proxy before this machine's own server."""
    monkeypatch.setattr(download, "_WAIT", 0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with Server({"/m/net.pth": CONTENT}) as running:
        yield running


@pytest.fixture
def fetch(server, tmp_path):
    """Fetches from the server; the folder is `fetch.folder`."""

    def call(wanted=KNOWN, **options):
        return download.fetch(wanted, tmp_path, f"{server.url}/m", **options)

    call.folder = tmp_path
    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fault(kind, call, *args):
    with pytest.raises(kind) as caught:
        call(*args)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("wanted", [KNOWN, BARE, Download(URL, 0, DIGEST[:8]), Download(URL, len(CONTENT))])
def test_whole_file_then_the_copy(server, fetch, wanted):
    assert fetch(wanted) == fetch.folder / "net.pth"
    assert (fetch.folder / "net.pth").read_bytes() == CONTENT
    assert server.log == [("/m/net.pth", None)]
    assert fetch(wanted).read_bytes() == CONTENT
    assert len(server.log) == 1
    assert names(fetch.folder) == [".net.pth.json", "net.pth"]


def test_a_known_file_is_taken_whatever_its_address_was(server, tmp_path):
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert download.fetch(KNOWN, tmp_path).read_bytes() == CONTENT
    assert server.log == []


def test_an_unknown_file_of_another_address_is_fetched_anew(server, fetch):
    fetch(BARE)
    server.files["/n/net.pth"] = OTHER
    assert download.fetch(BARE, fetch.folder, f"{server.url}/n/").read_bytes() == OTHER


@pytest.mark.parametrize("wanted", [KNOWN, BARE])
@pytest.mark.parametrize("damaged", [CONTENT[:-1], CONTENT + b"x", b"", OTHER])
def test_damaged_copy_is_fetched_anew(fetch, wanted, damaged):
    fetch(wanted).write_bytes(damaged)
    assert fetch(wanted).read_bytes() == CONTENT


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": 3}', '{"url": null, "sha256": 5}', '{"sha256": ""}'])
def test_damaged_notes_are_no_obstacle(fetch, text):
    fetch(BARE)
    (fetch.folder / ".net.pth.json").write_text(text)
    assert fetch(BARE).read_bytes() == CONTENT
    assert json.loads((fetch.folder / ".net.pth.json").read_text())["sha256"] == DIGEST


@pytest.mark.parametrize("wanted", [KNOWN, BARE])
def test_cut_transfer_goes_on_where_it_ended(server, fetch, wanted):
    server.cuts = [100_000, 50_000]
    assert fetch(wanted).read_bytes() == CONTENT
    assert [part for _, part in server.log] == [None, "bytes=100000-", "bytes=150000-"]


def test_next_command_goes_on_too(server, fetch):
    server.cuts = [1000] * download._TRIES
    message = fault(DataError, fetch)
    assert message == (
        f"download cut at 5,000 bytes (it has 300,000): {server.url}/m/net.pth: try again, or {ELSEWHERE}"
    )
    assert names(fetch.folder) == [".net.pth.json", ".net.pth.part"]
    assert fetch().read_bytes() == CONTENT
    assert server.log[-1][1] == "bytes=5000-"
    assert names(fetch.folder) == [".net.pth.json", "net.pth"]


def test_server_without_ranges_starts_over(server, fetch):
    server.ranges, server.cuts = False, [100_000]
    assert fetch().read_bytes() == CONTENT
    assert len(server.log) == 2


def test_without_tag_and_digest_nothing_is_resumed(server, fetch):
    server.tag, server.cuts = None, [100_000]
    assert fetch(BARE).read_bytes() == CONTENT
    assert [part for _, part in server.log] == [None, None]
    server.cuts = [100_000]
    (fetch.folder / "net.pth").unlink()
    assert fetch(KNOWN).read_bytes() == CONTENT
    assert server.log[-1][1] == "bytes=100000-"


def test_file_that_changed_after_the_cut_is_fetched_from_its_start(server, fetch):
    server.cuts = [1000] * download._TRIES
    fault(DataError, fetch, BARE)
    server.tag, server.files["/m/net.pth"] = '"2"', OTHER
    assert fetch(BARE).read_bytes() == OTHER


def test_beginning_from_another_address_is_thrown_away(server, fetch):
    server.cuts = [1000] * download._TRIES
    fault(DataError, fetch, BARE)
    server.files["/n/net.pth"] = OTHER
    assert download.fetch(BARE, fetch.folder, f"{server.url}/n").read_bytes() == OTHER


def test_beginning_of_another_file_is_noticed_by_the_digest(server, fetch):
    server.tag, server.cuts, server.files["/m/net.pth"] = None, [1000] * download._TRIES, OTHER
    fault(DataError, fetch)
    server.files["/m/net.pth"] = CONTENT
    assert fetch().read_bytes() == CONTENT
    assert [part for _, part in server.log[-2:]] == ["bytes=5000-", None]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
@pytest.mark.parametrize("wanted", [KNOWN, BARE])
def test_beginning_that_is_too_long_is_thrown_away(server, fetch, size, wanted):
    (fetch.folder / ".net.pth.part").write_bytes(bytes(size))
    (fetch.folder / ".net.pth.json").write_text(json.dumps({"url": f"{server.url}/m/net.pth", "tag": '"1"'}))
    assert fetch(wanted).read_bytes() == CONTENT


@pytest.mark.parametrize("header", ["tag", "modified"])
def test_part_of_another_file_is_thrown_away_though_the_server_sends_it(server, fetch, header):
    server.asks_tag, server.tag = False, None
    setattr(server, header, "a")
    server.cuts = [1000] * download._TRIES
    fault(DataError, fetch, BARE)
    setattr(server, header, "b")
    server.files["/m/net.pth"] = OTHER
    assert fetch(BARE).read_bytes() == OTHER
    assert [part for _, part in server.log[-2:]] == ["bytes=5000-", None]


def test_file_that_the_server_hands_out_in_pieces(server, fetch):
    server.cuts, server.pieces = [100_000], 20_000
    assert fetch(BARE).read_bytes() == CONTENT
    starts = [100_000 + 20_000 * number for number in range(10)]
    assert [part for _, part in server.log] == [None, *(f"bytes={start}-" for start in starts)]


@pytest.mark.parametrize("total", [len(CONTENT) + 1, 100_001, "*", "many"])
@pytest.mark.parametrize("wanted", [KNOWN, BARE])
def test_size_that_a_part_states(server, fetch, wanted, total):
    server.cuts, server.total = [100_000], total
    assert fetch(wanted).read_bytes() == CONTENT
    assert [part for _, part in server.log[1:]] == ["bytes=100000-"] + [None] * (total != "*")


def test_part_that_ends_nowhere_known_is_not_the_end(server, fetch):
    (fetch.folder / ".net.pth.part").write_bytes(CONTENT[:5000])
    (fetch.folder / ".net.pth.json").write_text(json.dumps({"url": f"{server.url}/m/net.pth", "tag": '"1"'}))
    server.total, server.pieces = "*", 1000
    assert fetch(BARE).read_bytes() == CONTENT
    assert [part for _, part in server.log] == ["bytes=5000-", None]


def test_notes_are_never_about_another_beginning(server, fetch, monkeypatch):
    server.cuts = [1000] * download._TRIES
    fault(DataError, fetch, BARE)
    server.tag, server.files["/m/net.pth"] = '"2"', OTHER

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_append", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(BARE)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert fetch(BARE).read_bytes() == OTHER


def test_wrong_digest(server, fetch):
    server.files["/m/net.pth"] = OTHER
    digest = hashlib.sha256(OTHER).hexdigest()
    assert fault(DataError, fetch) == (
        f"another file than expected (SHA-256 {digest}, expected {DIGEST}): {server.url}/m/net.pth: "
        f"{ELSEWHERE} if it is meant"
    )
    assert names(fetch.folder) == []
    message = fault(DataError, fetch, Download(URL, 0, DIGEST[:8]))
    assert f"(SHA-256 {digest}, expected {DIGEST[:8]}...)" in message


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x"])
def test_another_size(server, fetch, content):
    server.files["/m/net.pth"] = content
    message = fault(DataError, fetch)
    assert message.startswith(f"another file than expected ({len(content):,} bytes, expected 300,000): ")
    assert names(fetch.folder) == []


def test_length_that_is_not_told(server, fetch):
    server.lengths = False
    assert fetch().read_bytes() == CONTENT
    (fetch.folder / "net.pth").unlink()
    server.files["/m/net.pth"] = CONTENT + b"more"
    assert "(more than 300,000 bytes)" in fault(DataError, fetch)
    server.files["/m/net.pth"] = CONTENT[:-1]
    assert fault(DataError, fetch).startswith("download cut at 299,999 bytes (it has 300,000)")


def test_size_is_bounded(server, fetch, monkeypatch):
    monkeypatch.setattr(download, "_LIMIT", 200_000)
    assert "(300,000 bytes)" in fault(DataError, fetch, BARE)
    server.lengths = False
    assert "(more than 200,000 bytes)" in fault(DataError, fetch, BARE)
    assert "net.pth" not in names(fetch.folder)


def test_no_such_file(server, fetch):
    del server.files["/m/net.pth"]
    assert fault(EnvironmentFault, fetch) == (
        f"cannot fetch (HTTP status 404): {server.url}/m/net.pth: {ELSEWHERE}"
    )
    assert len(server.log) == 1


def test_server_that_fails_is_asked_again(server, fetch):
    server.states["/m/net.pth"] = 503
    assert fault(EnvironmentFault, fetch).startswith("cannot fetch (HTTP status 503): ")
    assert len(server.log) == download._TRIES


def test_no_server(server, fetch):
    server.http.server_close()
    assert fault(EnvironmentFault, fetch) == (
        f"cannot fetch (connection refused): {server.url}/m/net.pth: {ELSEWHERE}"
    )


def test_redirections(server, fetch):
    server.moved["/m/net.pth"] = "/elsewhere"
    server.files["/elsewhere"] = CONTENT
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x"])
def test_redirections_lead_to_the_web_alone(server, fetch, address):
    server.moved["/m/net.pth"] = address
    assert fault(EnvironmentFault, fetch) == (
        f"cannot fetch (HTTP status 302, it leads to {address}): {server.url}/m/net.pth: {ELSEWHERE}"
    )
    assert len(server.log) == 1


def test_a_safe_address_leads_to_no_unsafe_one():
    request = urllib.request.Request("https://example.invalid/a")
    follow = download._Redirects().redirect_request
    assert follow(request, None, 302, "", {}, "http://example.invalid/b") is None
    assert follow(request, None, 302, "", {}, "https://example.invalid/b").full_url == "https://example.invalid/b"


@pytest.mark.parametrize(
    "address",
    ["", "ftp://x", "file:///x", "x/y", "http://", "http://a b", "http://x:y/", "http://[", "https://x\n", "//x"],
)
def test_wrong_base_url(address):
    message = fault(ConfigError, download.check_base_url, address)
    assert message.startswith("--base_url: expected http://HOST/FOLDER or https://..., got ")


def test_progress(server, fetch):
    seen = []
    server.cuts = [100_000]
    fetch(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300_000, 300_000)
    assert (100_000, 300_000) in seen and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_several_files_lie_together(server, tmp_path):
    server.files |= {"/m/a.json": b"{}", "/m/b.bin": b"xyz"}
    seen, folder = [], tmp_path / "new" / "folder"
    wanted = (Download("http://o/a.json", 2), Download("http://o/b.bin", 3))
    path = download.fetch_all(wanted, folder, f"{server.url}/m/", lambda *counts: seen.append(counts))
    assert path == folder / "a.json"
    assert (folder / "b.bin").read_bytes() == b"xyz"
    assert seen == [(2, 5), (5, 5)]


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("SSD_TF_CACHE", str(tmp_path / "c"))
    assert download.cache_directory() == tmp_path / "c"
    monkeypatch.delenv("SSD_TF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_directory() == tmp_path / ".cache" / "ssd_tf"


def pack(entries, mode="w:gz"):
    """A tar archive of {name: bytes}, or of TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def take_out(server, folder, content, member):
    server.files["/m/net.tgz"] = content
    return download.fetch(Download("http://o/net.tgz", member=member), folder, f"{server.url}/m")


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz", "w:bz2"])
def test_member_of_an_archive(server, tmp_path, mode):
    content = pack([("a/other.ckpt", b"no"), ("a/net.ckpt", CONTENT), ("a/net.ckpt.meta", b"later")], mode)
    path = take_out(server, tmp_path, content, "a/net.ckpt")
    assert path == tmp_path / "net.ckpt" and path.read_bytes() == CONTENT
    assert names(tmp_path) == [".net.tgz.json", "net.ckpt", "net.tgz"]


def test_members_that_share_a_beginning(server, tmp_path):
    parts = {"net.ckpt.index": b"i", "net.ckpt.data-00000-of-00001": b"d"}
    others = [(name, b"no") for name in ("./net.ckpt-2.index", "net_ckpt", "x/net.ckpt", "./net.ckpt_old")]
    content = pack([(f"./{name}", data) for name, data in parts.items()] + others)
    assert take_out(server, tmp_path, content, "net.ckpt") == tmp_path / "net.ckpt"
    assert {name: (tmp_path / name).read_bytes() for name in parts} == parts
    assert names(tmp_path) == [".net.tgz.json", *sorted(parts), "net.tgz"]


def test_members_of_an_earlier_archive_do_not_stay(server, tmp_path):
    (tmp_path / "net.ckpt.folder").mkdir()
    take_out(
        server, tmp_path, pack([("net.ckpt.index", b"i"), ("net.ckpt.data-00000-of-00001", b"d")]), "net.ckpt"
    )
    (tmp_path / "net.tgz").unlink()
    take_out(server, tmp_path, pack([("net.ckpt", b"new")]), "net.ckpt")
    assert names(tmp_path) == [".net.tgz.json", "net.ckpt", "net.ckpt.folder", "net.tgz"]


def test_archive_is_no_member_of_an_earlier_one(server, tmp_path):
    assert take_out(server, tmp_path, pack([("net", b"x")]), "net").read_bytes() == b"x"
    assert names(tmp_path) == [".net.tgz.json", "net", "net.tgz"]


def header(kind, size, name="x"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def record(key, value):
    """A record of a pax header: it begins with its own length."""
    rest = f" {key}={value}\n"
    length = len(rest) + 2
    while length != len(f"{length}{rest}"):
        length = len(f"{length}{rest}")
    return f"{length}{rest}".encode()


def extended(records, kind=tarfile.XHDTYPE):
    return header(kind, len(records)) + records + bytes(-len(records) % 512)


PLAIN = header(tarfile.REGTYPE, 3, "net.ckpt") + b"abc".ljust(512, b"\0")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (extended(record("a", "b")) * 500 + PLAIN, "cannot read the archive: it needs too much memory"),
        (
            header(tarfile.XHDTYPE, 3 << 30) + bytes(1 << 20) + PLAIN,
            "cannot read the archive: too many headers, or too large ones",
        ),
        (
            b"".join(header(tarfile.DIRTYPE, 0, f"d{number}") for number in range(1100)) + PLAIN,
            "cannot read the archive: too many headers, or too large ones",
        ),
        (
            header(tarfile.REGTYPE, 1 << 22, "a") + bytes(1 << 22) + PLAIN,
            "cannot read the archive: more than 4,000,000",
        ),
        (header(tarfile.REGTYPE, 3000, "a") + bytes(512), "cannot read the archive: unexpected end of data"),
        (
            header(tarfile.REGTYPE, 3000, "net.ckpt") + bytes(512),
            "cannot read the archive: unexpected end of data",
        ),
        (
            extended(record("GNU.sparse.map", "0,3") + record("GNU.sparse.size", "3")) + PLAIN,
            "refused: net.ckpt is a link, sparse or too large",
        ),
        (
            header(tarfile.GNUTYPE_SPARSE, 0, "net.ckpt") + PLAIN,
            "refused: net.ckpt is a link, sparse or too large",
        ),
    ],
)
def test_archives_that_would_fill_the_memory(server, tmp_path, monkeypatch, content, message, packed):
    monkeypatch.setattr(download, "_LIMIT", 4_000_000)
    content = gzip.compress(content) if packed else content
    if len(content) < 4_000_000:
        text = fault(DataError, take_out, server, tmp_path, content, "net.ckpt")
        assert text.startswith(message) and text.endswith(f": {tmp_path / 'net.tgz'}"), text


def test_headers_that_are_bearable(server, tmp_path):
    many = b"".join(header(tarfile.DIRTYPE, 0, f"d{number}") for number in range(900))
    content = (
        extended(record("a", "b") * 100, tarfile.XGLTYPE) + many + extended(record("path", "net.ckpt")) + PLAIN
    )
    assert take_out(server, tmp_path, content, "net.ckpt").read_bytes() == b"abc"


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pack([(link("net.ckpt", tarfile.SYMTYPE, "/etc/passwd"), b"")]),
            "refused: net.ckpt is a link, sparse or too large",
        ),
        (
            pack([(link("net.ckpt", tarfile.LNKTYPE, "../x"), b"")]),
            "refused: net.ckpt is a link, sparse or too large",
        ),
        (
            pack([(link("net.ckpt", tarfile.FIFOTYPE, ""), b"")]),
            "refused: net.ckpt is a link, sparse or too large",
        ),
        (pack([("net.ckpt", bytes(70_000))]), "refused: net.ckpt is a link, sparse or too large"),
        (pack([("net.ckpt.a", bytes(40_000)), ("net.ckpt.b", bytes(40_000))]), "refused: net.ckpt.b is a link, "),
        (pack([("other", b"x")]), "no net.ckpt in the archive"),
        (
            pack([("../net.ckpt", b"x"), ("/net.ckpt", b"x"), ("net.ckpt.x/../../y", b"x")]),
            "no net.ckpt in the archive",
        ),
        (pack([("net.ckpt", CONTENT[:50_000])])[:20_000], "cannot read the archive: "),
        (pack([("net.ckpt", CONTENT[:50_000])], "w")[:20_000], "cannot read the archive: "),
        (b"<html>Not found</html>", "cannot read the archive: "),
        (b"\x1f\x8b" + bytes(100), "cannot read the archive: "),
        (b"", "cannot read the archive: "),
    ],
)
def test_refused_archives(server, tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(download, "_LIMIT", 60_000)
    folder = tmp_path / "cache"
    folder.mkdir()
    text = fault(DataError, take_out, server, folder, content, "net.ckpt")
    assert text.startswith(message) and text.endswith(f": {folder / 'net.tgz'}"), text
    assert not (folder / "net.ckpt").exists()
    assert "net.tgz" not in names(folder)  # the next try fetches it again
    assert names(tmp_path) == ["cache"]


@pytest.fixture
def coco_ssd(weights, server, tmp_path, monkeypatch):
    """The server then serves tfjs_coco_ssd; returns a function that imports it from there."""
    folder = weights / "coco_ssdlite_mobilenet_v2"
    server.files |= {f"/m/{path.name}": path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}
    monkeypatch.setenv("SSD_TF_CACHE", str(tmp_path / "cache"))

    def call(**options):
        base_url = f"{server.url}/m"
        return ssd_tf.import_weights("tfjs_coco_ssd", run_dir=tmp_path / "run", base_url=base_url, **options)

    return call


def test_import_of_a_download(coco_ssd, server, tmp_path):
    server.cuts = [200_000, 100_000]
    result = coco_ssd()
    assert result["weights"] == str(tmp_path / "cache" / "tfjs_coco_ssd" / "model.json")
    assert (result["classes"], result["backbone"]) == (80, "mobilenet_v2")
    assert (tmp_path / "run" / "LATEST").read_text() == "step-00000000\n"
    assert [path.rpartition("/")[2] for path, part in server.log if not part] == [
        "model.json",
        *(f"group1-shard{number}of5" for number in range(1, 6)),
    ]


@pytest.mark.parametrize("fails", ["cut", "changed", "missing"])
def test_nothing_is_left_of_an_import_whose_download_fails(coco_ssd, server, tmp_path, fails):
    if fails == "cut":
        server.cuts = [1000] * 50
    elif fails == "changed":
        server.files["/m/group1-shard3of5"] = bytes(len(server.files["/m/group1-shard3of5"]) + 1)
    else:
        del server.files["/m/group1-shard3of5"]
    kind = EnvironmentFault if fails == "missing" else DataError
    message = fault(kind, coco_ssd)
    assert f"{server.url}/m/" in message and ELSEWHERE in message
    assert names(tmp_path) == ["cache"]


PAGE = b"<!DOCTYPE html><title>Please log in</title>"


def test_page_in_place_of_a_file_does_not_stay_in_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_TF_CACHE", str(tmp_path / "cache"))
    server.files["/m/ssd300_mAP_77.43_v2.pth"] = PAGE
    calls = [("amdegroot_ssd300", {"run_dir": tmp_path / "run"})]
    server.files["/m/vgg16_reducedfc.pth"] = PAGE
    calls.append(("vgg16_reducedfc", {"output": tmp_path / "x.weights.h5"}))
    for source, where in calls:
        for _ in range(2):
            with pytest.raises(DataError, match=r"\.pth: removed from the cache, the next try fetches it again$"):
                ssd_tf.import_weights(source, base_url=f"{server.url}/m", **where)
        assert names(tmp_path / "cache" / source) == [".lock"]
    assert len(server.log) == 4


def test_what_the_user_names_is_never_removed(tmp_path):
    path = tmp_path / "ssd300_mAP_77.43_v2.pth"  # as it would be called in the cache
    path.write_bytes(PAGE)
    with pytest.raises(DataError) as caught:
        ssd_tf.import_weights("amdegroot_ssd300", path, run_dir=tmp_path / "run")
    assert "removed" not in str(caught.value) and path.read_bytes() == PAGE


def test_wrong_labels_are_not_the_files_fault(coco_ssd, tmp_path, monkeypatch):
    entry = catalogue.get_entry("tfjs_coco_ssd")
    bare = tuple(Download(file.url) for file in entry.downloads)
    monkeypatch.setitem(catalogue.ENTRIES, entry.name, dataclasses.replace(entry, downloads=bare))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError) as caught:
        coco_ssd(labels=tmp_path / "names.txt")
    message = str(caught.value)
    assert message.startswith("--labels names 2") and "removed" not in message
    assert (tmp_path / "cache" / entry.name / "model.json").exists()


@pytest.mark.parametrize(("wanted", "stays"), [(BARE, False), (KNOWN, True)])
def test_what_is_known_stays(fetch, wanted, stays):
    path = fetch(wanted)
    with pytest.raises(DataError), download.forgetting((wanted,), path):
        raise DataError("bad")
    assert (path.exists(), (fetch.folder / ".net.pth.json").exists()) == (stays, stays)


def test_nothing_is_removed_while_another_writes(fetch):
    path = fetch(BARE)
    with (
        fileio.directory_lock(fetch.folder),
        pytest.raises(DataError, match=r"^bad$"),
        download.forgetting((BARE,), path),
    ):
        raise DataError("bad")
    assert path.read_bytes() == CONTENT


def test_every_source_names_files_that_can_be_kept():
    for entry in catalogue.ENTRIES.values():
        kept = [download._address(file.url, "http://h/f").removeprefix("http://h/f/") for file in entry.downloads]
        assert len({*kept}) == len(kept) and all(name and name[0] != "." and "/" not in name for name in kept)
        for file in (*entry.downloads, *entry.others):
            assert file.url.startswith(("https://", "http://")) and file.size >= 0
            assert not file.sha256 or (file.sha256.strip("0123456789abcdef") == "" and len(file.sha256) in (8, 64))
            assert dataclasses.is_dataclass(file) and not file.member.startswith(("/", "."))
