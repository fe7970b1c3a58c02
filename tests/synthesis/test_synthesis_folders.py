import os

import pytest

from ssd_tf.errors import ConfigError, DataError
from ssd_tf.synthesis.folders import find_classes, list_images


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def named(groups, root):
    return {name: [path.relative_to(root).as_posix() for path in paths] for name, paths in groups.items()}


def test_sub_folders_are_classes_sorted_with_their_files(tmp_path):
    make(tmp_path, "fox/b.PNG", "fox/a.webp", "fox/.hidden.png", "cat/x_1.png", "cat/y_1.gif", ".git/z.png")
    groups, ignored = find_classes(tmp_path)
    assert list(groups) == ["cat", "fox"]
    assert named(groups, tmp_path) == {"cat": ["cat/x_1.png", "cat/y_1.gif"], "fox": ["fox/a.webp", "fox/b.PNG"]}
    assert ignored == []


def test_what_is_no_image_is_ignored_and_named(tmp_path):
    make(tmp_path, "LICENSE", "cat/1.png", "cat/notes.txt", "cat/more/2.png", "dog/1.png")
    groups, ignored = find_classes(tmp_path)
    assert named(groups, tmp_path) == {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}
    assert ignored == [tmp_path / "LICENSE", tmp_path / "cat" / "more", tmp_path / "cat" / "notes.txt"]


def test_a_flat_folder_is_grouped_by_the_name_before_the_number(tmp_path):
    names = (
        "cat_1.png",
        "cat-02.png",
        "cat.png",
        "bus7.png",
        "stop_sign_3.png",
        "_4.png",
        "2024.png",
        "a_1_2.png",
    )
    groups, ignored = find_classes(make(tmp_path, *names, "readme.md"))
    assert list(groups) == ["2024", "_4", "a_1", "bus7", "cat", "stop_sign"]
    assert [path.name for path in groups["cat"]] == ["cat-02.png", "cat.png", "cat_1.png"]
    assert sum(map(len, groups.values())) == len(names)
    assert ignored == [tmp_path / "readme.md"]


@pytest.mark.parametrize(
    "names", [("cat/1.png", "dog/1.png", "fox/1.png"), ("cat_1.png", "dog_1.png", "fox_1.png")]
)
def test_asked_classes_alone_in_the_asked_order(tmp_path, names):
    groups, _ = find_classes(make(tmp_path, *names), ("fox", "cat"))
    assert list(groups) == ["fox", "cat"]
    assert named(groups, tmp_path) == {"fox": [names[2]], "cat": [names[0]]}
    with pytest.raises(ConfigError) as error:
        find_classes(tmp_path, ("fox", "catt"))
    assert str(error.value) == f"unknown class 'catt' (did you mean cat?); {tmp_path} has: cat, dog, fox"


def test_classes_not_asked_for_are_not_looked_into(tmp_path):
    make(tmp_path, "cat/1.png", "dog/readme.txt")
    assert list(find_classes(tmp_path, ("cat",))[0]) == ["cat"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat/1.png", "stray.png"), "{0} holds sub-folders (classes), but also images: stray.png"),
        (("cat/1.png", "dog/readme.txt"), "no images in {0}/dog (.png .webp .gif .jpg .jpeg .bmp)"),
        (("readme.txt",), "no images in {0} (.png .webp .gif .jpg .jpeg .bmp)"),
        ((), "no images in {0} (.png .webp .gif .jpg .jpeg .bmp)"),
    ],
)
def test_folders_that_hold_no_classes(tmp_path, names, message):
    with pytest.raises(DataError) as error:
        find_classes(make(tmp_path, *names))
    assert str(error.value) == message.format(tmp_path)


@pytest.mark.parametrize("find", [list_images, find_classes])
def test_folders_that_cannot_be_read(tmp_path, find):
    with pytest.raises(DataError, match=r"^cannot read: no such file or directory: .*nowhere$"):
        find(tmp_path / "nowhere")
    make(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"^cannot read: not a directory: .*a\.png$"):
        find(tmp_path / "a.png")


def test_a_class_name_that_is_no_text(tmp_path):
    try:
        os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open(os.fsencode(tmp_path) + b"/caf\xe9/1.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"^[ -~]*: caf\\udce9 cannot be the name of a class: it is not UTF-8$"):
        find_classes(tmp_path)


def test_images_of_a_folder(tmp_path):
    make(tmp_path, "b.jpg", "a.JPEG", "sub/c.png", "list.txt", ".d.png")
    (tmp_path / "dir.png").mkdir()
    found, ignored = list_images(tmp_path)
    assert [path.name for path in found] == ["a.JPEG", "b.jpg"]
    assert [path.name for path in ignored] == ["dir.png", "list.txt", "sub"]
