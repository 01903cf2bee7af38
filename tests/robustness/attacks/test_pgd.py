import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.robustness.attacks.quiet import quiet


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cross_entropy_of(network, labels):
    return lambda x: F.cross_entropy(network(x), labels, reduction="none")


@pytest.fixture
def images():
    return torch.rand(8, 1, 8, 8, generator=generator(1))


LABELS = torch.arange(8) % 4


@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(1e-3, 1),
    start=st.sampled_from(["uniform", "gaussian", "none"]),
    steps=st.integers(1, 4),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_samples_stay_in_the_ball_and_in_the_value_range_whatever_the_normalisation(norm, epsilon, start, steps, restarts, seed):
    weight = torch.randn(64, 4, generator=generator(seed))
    x = torch.rand(8, 1, 8, 8, generator=generator(seed + 1)).round(decimals=1)  # with exact zeros and ones
    attack = Attack(norm=norm, epsilon=epsilon, start=start, steps=steps, restarts=restarts)
    x_adv = maximise(x, cross_entropy_of(lambda z: ((z - 0.5) / 0.01).flatten(1) @ weight, LABELS), attack, generator(seed))
    offset = (x_adv - x).flatten(1)
    size = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert size.max() <= epsilon * (1 + 1e-5) + 1e-7  # float32 rounding of values near 1
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_optimum_of_a_linear_model_is_reached(norm):
    # closed form: the margin w·x falls by epsilon times the dual norm of w
    w = torch.randn(64, generator=generator(3))
    x = torch.full((4, 1, 8, 8), 0.5)
    epsilon = 0.1
    x_adv = maximise(x, lambda z: -(z.flatten(1) @ w), Attack(norm=norm, epsilon=epsilon, steps=50, step_size=epsilon / 4), generator())
    dual = w.abs().sum() if norm == "linf" else w.norm()
    assert torch.allclose((x - x_adv).flatten(1) @ w, epsilon * dual.expand(4), rtol=1e-3)


def test_one_step_without_start_moves_along_the_sign_of_the_finite_difference_gradient(tiny_cnn, images):
    network = tiny_cnn.double().eval()
    x, delta = images.double(), 1e-6
    loss_of = cross_entropy_of(network, LABELS)
    x = 0.2 + 0.6 * x  # away from the range's ends
    slopes = torch.zeros_like(x)
    with torch.no_grad():
        for row in range(8):
            for column in range(8):
                moved = torch.zeros_like(x)
                moved[:, :, row, column] = delta
                slopes[:, 0, row, column] = (loss_of(x + moved) - loss_of(x - moved)) / (2 * delta)
    x_adv = maximise(x, loss_of, Attack(epsilon=0.05, steps=1, step_size=0.05, start="none"), generator())
    clear = slopes.abs() > 1e-6
    assert clear.float().mean() > 0.9
    assert torch.equal((x_adv - x).sign()[clear], slopes.sign()[clear])


@pytest.mark.parametrize("fails", [False, True], ids=["undisturbed", "when the loss raises"])
def test_the_network_is_left_untouched(tiny_cnn, images, fails):
    tiny_cnn.train()
    before = {name: value.clone() for name, value in tiny_cnn.state_dict().items()}
    global_state = torch.random.get_rng_state()
    calls = 0

    def loss_of(x):
        nonlocal calls
        calls += 1
        if fails and calls == 3:
            raise RuntimeError("planted")
        return F.cross_entropy(tiny_cnn(x), LABELS, reduction="none")

    try:
        with quiet(tiny_cnn):
            maximise(images, loss_of, Attack(steps=4), generator())
    except RuntimeError:
        assert fails
    assert all(torch.equal(value, before[name]) for name, value in tiny_cnn.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tiny_cnn.parameters())
    assert all(module.training for module in tiny_cnn.modules())
    assert torch.equal(torch.random.get_rng_state(), global_state)


def test_it_works_where_gradients_are_switched_off(tiny_cnn, images):
    with torch.no_grad(), quiet(tiny_cnn):
        x_adv = maximise(images, cross_entropy_of(tiny_cnn, LABELS), Attack(epsilon=0.1), generator())
    assert not torch.equal(x_adv, images)


def test_more_steps_and_restarts_do_not_weaken_the_attack(tiny_cnn, images):
    with quiet(tiny_cnn):
        loss_of = cross_entropy_of(tiny_cnn, LABELS)
        loss = {}
        for steps, restarts in [(2, 1), (10, 1), (10, 4)]:
            attack = Attack(epsilon=0.1, steps=steps, restarts=restarts)
            loss[steps, restarts] = loss_of(maximise(images, loss_of, attack, generator()))
        assert loss[10, 1].mean() >= 0.99 * loss[2, 1].mean()
        assert (loss[10, 4] >= loss[10, 1] - 1e-6).all()  # the first of the four is the one
        assert (loss[10, 1] >= loss_of(images) - 1e-6).all()


def test_equal_seeds_give_equal_samples_and_others_differ(tiny_cnn, images):
    with quiet(tiny_cnn):
        a, b, c = (maximise(images, cross_entropy_of(tiny_cnn, LABELS), Attack(epsilon=0.1, steps=3), generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_channels_last_is_kept_and_changes_no_draw(images):
    x = images.expand(8, 3, 8, 8).contiguous()
    w = torch.randn(3 * 64, generator=generator(3))
    attack = Attack(epsilon=0.1, steps=3)
    loss_of = lambda z: z.flatten(1) @ w  # noqa: E731
    plain, last = maximise(x, loss_of, attack, generator()), maximise(x.contiguous(memory_format=torch.channels_last), loss_of, attack, generator())
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_trades_loss_has_no_gradient_at_the_sample_and_its_gaussian_start_gives_it_one(tiny_cnn, images):
    def divergence_of(x):
        return F.kl_div(F.log_softmax(20 * tiny_cnn(x), dim=1), clean, reduction="none", log_target=True).sum(1)

    def gradient_at(x):
        return torch.autograd.grad(divergence_of(x.requires_grad_()).sum(), x)[0].abs().amax()

    images = images.double()
    with quiet(tiny_cnn.double()):
        clean = F.log_softmax(20 * tiny_cnn(images), dim=1)
        near = maximise(images, divergence_of, Attack(epsilon=0.1, start="gaussian", steps=1, step_size=1e-9), generator())
        moved = maximise(images, divergence_of, Attack(epsilon=0.1, start="gaussian", steps=1), generator())
        assert gradient_at(images.clone()) < 1e-14  # zero but for rounding
        assert gradient_at(near.clone()) > 1e-8
        assert 0 < (near - images).abs().max() < 0.01
        assert (divergence_of(moved) > 10 * divergence_of(near)).all()


def test_a_loss_that_is_not_finite_is_told():
    with pytest.raises(ConfigError) as caught:
        maximise(torch.rand(2, 3), lambda x: x.sum(1) * float("nan"), Attack(), generator())
    problem = caught.value.problems[0]
    assert "the attack's loss is nan at step 1" in problem.message
    assert problem.at == "the network under attack"
    assert "lower the learning rate" in problem.do


def test_a_gradient_too_small_for_its_squared_norm_still_moves_the_sample():
    x = torch.full((1, 1, 8, 8), 0.5)
    x_adv = maximise(x, lambda z: z.flatten(1).sum(1) * 1e-30, Attack(norm="l2", epsilon=0.5, start="none"), generator())
    assert (x_adv - x).norm() == pytest.approx(0.5, rel=1e-4)


def test_a_network_without_input_gradient_stays_at_its_start():
    layer = nn.Linear(64, 4)
    x = torch.rand(2, 64)
    for norm in ("linf", "l2"):
        x_adv = maximise(x, lambda z: layer(z.round()).sum(1) + 0 * z.sum(1), Attack(norm=norm, epsilon=0.2, start="none"), generator())
        assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_is_nan_is_told_though_its_loss_is_finite(norm):
    rooted = lambda x: (x - x.detach()).sqrt().sum(1)  # noqa: E731  # a root at 0: infinity times 0
    with pytest.raises(ConfigError) as caught:
        maximise(torch.rand(2, 3), lambda x: rooted(x) * 0, Attack(norm=norm, steps=1), generator())
    problem = caught.value.problems[0]
    assert problem.message == "the attack's gradient is NaN at step 1"
    assert problem.at == "the network under attack"
    assert "use a black-box attack" in problem.do
