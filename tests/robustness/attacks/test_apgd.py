import pytest
import torch

from kdpipe.robustness.attacks.apgd import checkpoints, climb
from kdpipe.robustness.attacks.attack import Attack


def restated(x, begin, loss_of, epsilon, steps):
    """Algorithm 1 of Croce & Hein 2020 for one sample, linf, line by line; the iterates in order."""

    def gradient(point):
        point = point.clone().requires_grad_()
        return torch.autograd.grad(loss_of(point[None])[0], point)[0]

    def projected(point):
        return torch.minimum(torch.maximum(point, x - epsilon), x + epsilon).clamp(0, 1)

    value = lambda point: float(loss_of(point[None])[0])  # noqa: E731
    looks = sorted(checkpoints(steps))
    points = [begin, projected(begin + 2 * epsilon * gradient(begin).sign())]
    values, rate, rates, highest = [value(begin), value(points[1])], 2 * epsilon, {0: None}, {0: value(begin)}
    best = max(points, key=value)
    previous_look, rose = 0, [values[1] > values[0]]
    for k in range(1, steps):
        if k in looks:  # x(k) is known: the conditions of the paper at w_j = k
            stuck = sum(rose) < 0.75 * (k - previous_look) or (rates[previous_look] == rate and highest[previous_look] == value(best))
            rates[k], highest[k] = rate, value(best)
            if stuck:
                rate /= 2
                points[k], values[k] = best, value(best)
            previous_look, rose = k, []
        z = projected(points[k] + rate * gradient(points[k]).sign())
        points.append(projected(points[k] + 0.75 * (z - points[k]) + 0.25 * (points[k] - points[k - 1])))
        values.append(value(points[-1]))
        rose.append(values[-1] > values[-2])
        if values[-1] > value(best):
            best = points[-1]
    return points


def test_the_steps_are_those_of_the_papers_algorithm():
    generator = torch.Generator().manual_seed(0)
    x, target = torch.rand(5, 12, generator=generator), torch.rand(5, 12, generator=generator)
    pull = torch.rand(12, generator=generator) + 0.5

    def loss_of_sample(index):
        return lambda moved: -((moved - target[index]).square() * pull).sum(1) + torch.sin(40 * moved).sum(1) / 10

    def loss_of(moved):
        return torch.cat([loss_of_sample(index)(moved[index : index + 1]) for index in range(len(moved))])

    passed = []

    def watched(moved):
        passed.append(moved.detach().clone())
        return loss_of(moved)

    attack = Attack(epsilon=0.2, steps=40)
    last = climb(x, x.clone(), watched, attack)
    asked = torch.stack([*passed, last])
    for index in range(5):
        expected = restated(x[index], x[index], loss_of_sample(index), 0.2, 40)
        looks = checkpoints(40)
        for k, point in enumerate(expected):
            if k not in looks:  # there the restatement has put the best point in its place
                torch.testing.assert_close(asked[k, index], point, atol=1e-5, rtol=0, msg=f"sample {index}, step {k}")


def test_checkpoints_are_the_published_ones_for_100_steps():
    # 22 % first, then gaps of 19, 16, 13, 10, 7, 6, 6 %: section 3.2
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_a_hill_inside_the_ball_is_climbed_to_its_top_by_shrinking_steps():
    x = torch.full((1, 6), 0.5)
    top = torch.tensor([[0.41, 0.55, 0.47, 0.58, 0.5, 0.44]])
    seen = []

    def loss_of(moved):
        seen.append(float((moved.detach() - top).abs().max()))
        return -(moved - top).square().sum(1)

    climb(x, x.clone(), loss_of, Attack(epsilon=0.2, steps=100))
    assert max(seen[:22]) > 0.1  # at first it crosses the ball
    assert min(seen) < 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_sample_and_the_start_are_not_written_to(norm):
    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    begin = (x + 0.01).clamp(0, 1)
    before = x.clone(), begin.clone()
    climb(x, begin, lambda moved: moved.square().sum(1), Attack(norm=norm, epsilon=0.1, steps=7))
    assert torch.equal(x, before[0])
    assert torch.equal(begin.detach(), before[1])
