import torch

from kdpipe.foundation.randomness import stream
from kdpipe.tasks.augmentations import randaugment as module
from kdpipe.tasks.augmentations.operations import OVERLAPPING, PLAIN, vary
from kdpipe.tasks.augmentations.randaugment import randaugment


def images(shape=(64, 3, 12, 12)):
    return torch.rand(shape, generator=stream(0, "images"))


def test_each_sample_goes_through_the_operations_drawn_for_it_at_one_magnitude():
    x = images()
    draws = stream(0, "augment")
    chosen = torch.randint(-1, len(PLAIN), (2, 64), generator=draws)
    signs = torch.randint(2, (2, 64), generator=draws) * 2 - 1
    expected = x
    for place in range(2):
        expected = torch.cat([vary(expected[[i]], tuple(PLAIN.values()), chosen[place, [i]], signs[place, [i]] * 0.3) for i in range(64)])
    torch.testing.assert_close(randaugment(x, stream(0, "augment")), expected)


def test_the_identity_is_one_of_the_operations():
    unchanged = (randaugment(images((500, 1, 20, 20)), stream(0, "augment"), operations=1) == images((500, 1, 20, 20))).flatten(1).all(dim=1)
    assert 20 <= unchanged.sum() <= 90  # one in ten: 50, and images that an operation leaves as they are


def test_operations_that_resemble_the_corruptions_are_left_out_unless_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "vary", lambda x, operations, chosen, levels: (seen.append(operations), x)[1])
    randaugment(images(), stream(0, "augment"))
    randaugment(images(), stream(0, "augment"), overlapping=True)
    assert seen[0] == tuple(PLAIN.values())
    assert seen[-1] == (*PLAIN.values(), *OVERLAPPING.values())
