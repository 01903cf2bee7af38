"""The corruptions beside the package imagecorruptions (ImageNet-C's code), on the same photographs at 224 pixels.

    pip install imagecorruptions==1.1.2   # beside scikit-image and OpenCV; in an environment of its own
    python benchmarks/corruptions_beside_published.py

Prints for each cell the root mean square distance from the image, theirs / ours, each over the same 6 crops and 3 draws. Draws differ, so equal
means equal within the scatter of draws (noise, blur, light: under 1 %; snow, fog, spatter, elastic: some per cent).
"""

import warnings

import numpy as np
from imagecorruptions import corrupt as theirs
from sklearn.datasets import load_sample_images

from kdpipe.robustness.corruption import COMMON, EXTRA, SEVERITIES, corrupt

_DRAWS = 3
_SLOW = ("glass-blur",)  # theirs loops over the pixels in Python: one crop and one draw


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    pictures = load_sample_images().images
    crops = np.stack([picture[top : top + 224, left : left + 224] for picture in pictures for top in (0, 100, 200) for left in (200,)])
    x = crops.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.random.seed(0)
    for name in (*COMMON, *EXTRA):
        called = name.removesuffix("-c").replace("-", "_")
        cells = []
        some, draws = (1, 1) if name in _SLOW else (len(crops), _DRAWS)
        for severity in SEVERITIES:
            other = [np.stack([theirs(crop, severity=severity, corruption_name=called) for crop in crops[:some]]) for _ in range(draws)]
            mine = [corrupt(name, x[:some], severity, seed=0, indices=np.arange(some) + 100 * draw).transpose(0, 2, 3, 1) for draw in range(draws)]
            distances = [
                np.sqrt(np.mean([(np.asarray(one, dtype=np.float64) / scale - crops[:some] / 255) ** 2 for one in kind]))
                for kind, scale in ((other, 255), (mine, 1))
            ]
            cells.append("{:.3f}/{:.3f}".format(*distances))
        print(f"{name:20s}", *cells, flush=True)


if __name__ == "__main__":
    main()
