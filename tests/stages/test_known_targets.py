import numpy as np
import torch

from kdpipe.stages.known_targets import KnownTargets


def test_the_table_holds_the_teachers_logits_and_is_filled_once_at_the_first_question(tiny, digits, listener):
    teacher = tiny().module.eval()
    passes = []
    teacher.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    known = KnownTargets(teacher, digits.train, digits.classes, listener, "distill")
    assert passes == []
    indices = torch.tensor([7, 0, 199])
    got = known(indices)
    known(torch.tensor([3]))
    assert passes == [200]
    assert torch.allclose(got, teacher(torch.from_numpy(digits.train.read(indices.numpy()))), atol=1e-5)
    assert not got.requires_grad


def test_a_table_too_large_for_memory_does_not_fit(digits, listener):
    assert KnownTargets(torch.nn.Identity(), digits.train, digits.classes, listener, "distill").fits
    assert not KnownTargets(torch.nn.Identity(), digits.train, tuple(map(str, range(400_000))), listener, "distill").fits
    assert len(digits.train) * 400_000 * np.dtype(np.float32).itemsize > 256 << 20
