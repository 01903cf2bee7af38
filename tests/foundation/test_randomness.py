import numpy as np
import torch

from kdpipe.foundation.randomness import lent_to_torch, numpy_stream, stream


def test_the_same_name_gives_the_same_numbers_and_another_name_others():
    first, again, other = (torch.rand(8, generator=stream(3, name)) for name in ("attack", "attack", "noise"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_another_seed_gives_other_numbers():
    assert not torch.equal(torch.rand(8, generator=stream(0, "a")), torch.rand(8, generator=stream(1, "a")))


def test_numpy_streams_follow_the_same_rule():
    assert np.array_equal(numpy_stream(3, "a").random(8), numpy_stream(3, "a").random(8))
    assert not np.array_equal(numpy_stream(3, "a").random(8), numpy_stream(3, "b").random(8))


def test_the_global_generators_are_neither_seeded_nor_read():
    before = torch.random.get_rng_state()
    torch.rand(8, generator=stream(3, "a"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_numbers_are_the_same_on_every_machine():
    assert torch.randint(0, 1000, (4,), generator=stream(0, "golden")).tolist() == [573, 14, 418, 271]


def test_a_stream_lent_to_torch_is_what_layers_draw_from_and_torchs_own_goes_on_after():
    before = torch.random.get_rng_state()
    with lent_to_torch(stream(3, "init")):
        first = torch.rand(4)
    with lent_to_torch(stream(3, "init")):
        again = torch.rand(4)
    assert torch.equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())
