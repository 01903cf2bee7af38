"""Part `refine` of `schemes.py`: does fine-tuning once more pay, once the layers that stay in float are known?

`resnet-8` on the digits, hurt by a large channel or by few bits, fine-tuned before the search as `[qat]` does it. In turn: the search after 2 epochs; the same
with `refine_epochs = 2`; the search after 4 epochs, which costs as much. Test accuracy of the shipped twins, paired.
"""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from schemes_files import PLAIN, WORK, Printing, changed
from schemes_mixed import Maker, answers, digits_resnet, folder_name, loaded, with_outlier

from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.robustness.intervals import paired_difference
from kdpipe.stages import qat
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets.profile import load_profile

WAYS: dict[str, dict[str, int]] = {
    "2 epochs, search": {"epochs": 2},
    "2 epochs, search, 2 epochs": {"epochs": 2, "refine_epochs": 2},
    "4 epochs, search": {"epochs": 4},
}
REFINED = "2 epochs, search, 2 epochs"
SEEDS = 3
CASES: Mapping[str, tuple[Maker, Mapping[str, Any], float]] = {
    "one channel 300 times as large": (lambda task, data: with_outlier(digits_resnet(task, data), "body.layer2.0", 300), {}, 3.0),
    "3-bit weights": (digits_resnet, {"weight_bits": 3}, 2.5),
}
"""How the network is hurt, how the scheme is changed, and the limit of the search."""


def refine(save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Each way for each case; `save` takes what is finished."""
    task, data = loaded("digits")
    x, labels = data.test.read(np.arange(len(data.test))), data.test.labels
    rows: list[dict[str, Any]] = []
    for case, (maker, scheme, limit) in CASES.items():
        start = save_network(maker(task, data), WORK / "refine" / "network")
        profile = changed(load_profile("cpu", at="benchmark"), **scheme)
        right: dict[str, list[Any]] = {way: [] for way in WAYS}
        for seed in range(SEEDS):
            for way, epochs in WAYS.items():
                context = Context(folder=WORK / "refine" / folder_name(f"{case}-{seed}-{way}"), project=WORK, seed=seed, threads=1, progress=Printing())
                shutil.rmtree(context.folder, ignore_errors=True)
                context.folder.mkdir(parents=True)
                config = QatConfig(keep_float="auto", keep_float_drop=limit, objective=PLAIN, **epochs)
                made = qat.run(Inputs({"prune": start, "teacher": start}, data, task, profile), config, context)
                outcome = Outcome.model_validate_json((made / "quantization.json").read_bytes())
                right[way].append(answers(TorchPredictor(load_network(made).module), x).argmax(1) == labels)
                assert outcome.mixed_precision is not None
                rows.append(
                    {
                        "case": case,
                        "seed": seed,
                        "way": way,
                        "outcome": outcome.mixed_precision.outcome,
                        "float_layers": len(outcome.float_layers),
                        "refined_kept": None if outcome.refined is None else outcome.refined.kept,
                        "test_accuracy": 100 * float(right[way][-1].mean()),
                    }
                )
                print(rows[-1], flush=True)
        for way in (it for it in WAYS if it != REFINED):
            gained = paired_difference(np.concatenate(right[REFINED]), np.concatenate(right[way]))
            told = {"value": gained.value, "low": gained.low, "high": gained.high, "n": gained.n}
            rows.append({"case": case, "way": f"refined less {way}", **told})
            print(rows[-1], flush=True)
        save({"rows": rows})
    return {"rows": rows}
