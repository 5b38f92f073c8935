import pytest
from torch import nn

from petseg.config import OptimConfig
from petseg.optim import build_optimizer, learning_rate


def test_rates_by_hand() -> None:
    constant = OptimConfig(lr=1.0)
    assert [learning_rate(constant, s, 10) for s in (0, 9)] == [1.0, 1.0]
    cosine = OptimConfig(lr=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(cosine, s, 10) for s in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[9] < 0.05


def test_adamw_spares_vectors_from_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    groups = build_optimizer(OptimConfig(name="adamw", weight_decay=0.1), model).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]
    (group,) = build_optimizer(OptimConfig(name="adam", weight_decay=0.1), model).param_groups
    assert group["weight_decay"] == 0.1
