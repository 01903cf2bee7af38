import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from kdpipe.foundation.errors import VerificationError
from kdpipe.pipeline.report.gallery import gallery, png
from kdpipe.pipeline.results import read_results


def _pixels(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


@given(st.sampled_from([1, 3]).flatmap(lambda channels: arrays(np.float32, (channels, 5, 4), elements=st.floats(0, 1, width=32))))
def test_a_picture_holds_the_sample_to_half_a_level(sample: Any) -> None:
    shown = _pixels(png(sample)).reshape(5, 4, -1).transpose(2, 0, 1)
    assert np.abs(shown / 255 - sample).max() <= 0.5 / 255 + 1e-6


def test_a_large_picture_is_averaged_down_with_its_shape_kept() -> None:
    shown = _pixels(png(np.full((3, 400, 800), 0.25, np.float32)))
    assert shown.shape == (84, 168, 3)
    assert np.all(shown == 64)


def test_the_gallery_shows_what_the_file_said_to_each_version(build_folder: Any) -> None:
    images = read_results(build_folder.write()).targets["cpu"].samples
    assert images is not None
    shown = gallery("int8", images, [f"class {k}" for k in range(10)])
    assert shown is not None
    assert shown.columns == ("clean", "attacked: pgd-20 on twin", "the change, 5 times as strong", "jpeg, severity 3")
    clean, attacked, change, corrupted = shown.rows[0]
    assert (clean.says, clean.wrong) == ("✓ class 0, 90 %", False)
    assert (attacked.says, attacked.wrong) == ("✗ class 9, 90 %", True)
    assert corrupted.alt == "class 0, corrupted: jpeg"
    levels = _pixels(change.image)
    assert levels.max() == 255 or levels.min() == 0  # the largest change spans half of the range


def test_samples_that_are_no_pictures_have_no_gallery(build_folder: Any) -> None:
    images = read_results(build_folder.write()).targets["cpu"].samples
    assert images is not None
    flat = {name: version.reshape(len(version), -1) for name, version in images.versions.items()}
    assert gallery("int8", replace(images, versions=flat), ["a"]) is None


@pytest.mark.parametrize("missing", ["samples.json", "samples.safetensors"])
def test_a_build_without_its_samples_is_damaged(build_folder: Any, missing: str) -> None:
    build = build_folder.write()
    (build.results["score-export@cpu"].folder / missing).unlink()
    with pytest.raises(VerificationError) as caught:
        read_results(build)
    (problem,) = caught.value.problems
    assert problem.message.startswith("cannot be read as a build's result: ")
    assert (problem.at or "").endswith(missing)
    assert "kdpipe build" in (problem.do or "")
