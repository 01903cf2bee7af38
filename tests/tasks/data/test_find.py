import shutil

import numpy as np
import pytest

from kdpipe.tasks.data.find import found


@pytest.fixture(autouse=True)
def no_data_variable(monkeypatch, request):
    if "shared_data" not in request.fixturenames:
        monkeypatch.delenv("KDPIPE_DATA", raising=False)


def find(data, project, path=None):
    return found(data, path=path, project=project)


def test_the_digits_are_built_in(tmp_path):
    assert find("digits", tmp_path).name == "digits"


def test_a_path_is_relative_to_the_project(arrays, npz, tmp_path):
    images, labels = arrays(6)
    npz(images=images, labels=labels)

    assert find("data.npz", tmp_path).name == "data"


def test_a_folder_of_class_folders_is_recognised(class_folders, tmp_path):
    class_folders("animals", {"ant": 2, "cat": 2})

    assert find("animals", tmp_path).classes == ("ant", "cat")


def test_a_file_called_as_a_built_in_set_is_named_with_its_folder(class_folders, tmp_path):
    class_folders("digits", {"ant": 2, "cat": 2})

    assert find("digits", tmp_path).classes == tuple("0123456789")
    assert find("./digits", tmp_path).classes == ("ant", "cat")


def test_the_real_sets_are_found_by_the_environment(shared_data, tmp_path):
    assert find("fashion-mnist", tmp_path).classes[9] == "Ankle boot"
    assert find("cifar10", tmp_path).classes[0] == "airplane"


def test_the_real_sets_are_found_by_a_path(shared_data, tmp_path, monkeypatch):
    monkeypatch.delenv("KDPIPE_DATA")

    assert find("fashion-mnist", tmp_path, shared_data / "fashion-mnist").name == "fashion-mnist"
    assert find("cifar10", tmp_path, shared_data).name == "cifar10"
    assert find(str(shared_data / "fashion-mnist"), tmp_path).classes == tuple("0123456789")
    assert find(str(shared_data / "cifar10-jpeg-train.npz"), tmp_path).test is not None
    assert list(find(str(shared_data / "pneumoniamnist.npz"), tmp_path).parts) == ["train", "validation", "test"]


def test_a_path_with_other_data_is_refused(tmp_path, problem):
    told = problem(lambda: find("digits", tmp_path, tmp_path))

    assert 'goes with data = "fashion-mnist" or "cifar10", not with \'digits\'' in told.message
    assert told.at == "[task] path"
    assert told.do == "write the path as data = …"


def test_where_the_files_of_a_built_in_set_lie_must_be_said(tmp_path, problem):
    told = problem(lambda: find("fashion-mnist", tmp_path))

    assert told.message == "where the files of 'fashion-mnist' lie is not known"
    assert told.at == 'data = "fashion-mnist"'
    assert told.do == "set path = … in [task], or the environment variable KDPIPE_DATA"


def test_an_environment_that_names_another_folder_is_told(tmp_path, monkeypatch, problem):
    monkeypatch.setenv("KDPIPE_DATA", str(tmp_path))

    told = problem(lambda: find("cifar10", tmp_path))

    assert told.message == "the files of 'cifar10' are not there"
    assert told.at == f"KDPIPE_DATA={tmp_path}"
    assert "correct the environment variable" in told.do


def test_a_path_that_does_not_exist_is_told(tmp_path, problem):
    told = problem(lambda: find("cifar10", tmp_path, tmp_path / "none"))

    assert told.message == "no such file or folder"
    assert told.at == str(tmp_path / "none")
    assert "[task] path" in told.do


def test_a_misspelt_name_is_answered_with_the_nearest(tmp_path, problem):
    told = problem(lambda: find("digit", tmp_path))

    assert told.message == "no data called 'digit': neither a built-in set (digits, fashion-mnist, cifar10) nor a file or folder"
    assert told.at == str(tmp_path / "digit")
    assert told.do.startswith("did you mean 'digits'? ")


def test_an_empty_folder_is_told(tmp_path, problem):
    (tmp_path / "empty").mkdir()

    told = problem(lambda: find("empty", tmp_path))

    assert told.message == "the folder is empty"
    assert told.at == str(tmp_path / "empty")
    assert "a folder of class folders" in told.do


@pytest.mark.parametrize("name", ["data.csv", "data.npy", "images"])
def test_an_unknown_format_is_told_with_the_known_ones(name, tmp_path, problem):
    path = tmp_path / name
    if path.suffix:
        path.write_text("1,2,3")
    else:
        path.mkdir()
        (path / "a.png").write_bytes(b"")

    told = problem(lambda: find(name, tmp_path))

    assert told.message == "the format of this data is not known"
    assert told.at == str(path)
    assert "an .npz of images and labels" in told.do
    assert "package.module:callable" in told.do


def test_a_file_with_a_jpeg_array_is_recognised_by_its_content(shared_data, tmp_path):
    shutil.copy(shared_data / "cifar10-jpeg-test.npz", tmp_path / "birds.npz")

    source = find("birds.npz", tmp_path)

    assert source.name == "birds"
    assert source.test is None
    assert np.bincount(source.train.labels).tolist() == [1000] * 10
