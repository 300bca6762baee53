"""The learning-rate test: its rules on known curves, and a run that writes the curve alone and restores the weights."""

import csv
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from rad.models.lora import trainable
from rad.training.rate_finder import HIGH, LOW, Point, RateFinder, suggest
from tests.training.test_module import data, module


def curve(ratio):
    rates = [10 ** (step / 10) for step in range(-60, 1)]
    return [Point(rate, ratio(math.log10(rate)), 1.0, ratio(math.log10(rate))) for rate in rates]


def test_rules_on_a_curve_that_falls_and_diverges():
    """A logistic fall around 1e-3, then a steep rise from 1e-1: the steepest descent lies at 1e-3."""
    points = curve(lambda x: 1 - 0.5 / (1 + math.exp(-4 * (x + 3))) + max(0.0, x + 1) ** 2)
    found = suggest(points)
    assert found.steepest == pytest.approx(1e-3)
    lowest = min(points, key=lambda point: point.ratio).rate
    assert found.tenth == pytest.approx(lowest / 10)


def test_curves_without_a_fall_are_refused():
    with pytest.raises(ValueError, match="falls at no learning rate"):
        suggest(curve(lambda x: 1 + 10**x))
    with pytest.raises(ValueError, match="3 steps before the loss diverged"):
        suggest(curve(lambda x: 1.0)[:3])


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="20 or more"):
        RateFinder(5, tmp_path)


def test_rates_rise_by_equal_factors(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler, rates = RateFinder(20, tmp_path)._rates(optimizer), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([LOW * (HIGH / LOW) ** (step / 19) for step in range(20)])


def test_losses_are_means_of_a_step_and_ratios_of_running_means(tmp_path):
    """Two batches a step, each with half of its loss, as Lightning gives it; it ends above four times the first loss."""
    finder, network = RateFinder(20, tmp_path), torch.nn.Linear(1, 1)
    trainer = SimpleNamespace(accumulate_grad_batches=2, should_stop=False)
    finder._start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    finder._rate, above, below = 0.1, 0.0, 0.0
    for step, losses in enumerate([(2.0, 4.0), (3.0, 5.0), (7.0, 9.0), (11.0, 15.0), (30.0, 40.0)]):
        assert not trainer.should_stop
        for number, loss in enumerate(losses):
            finder._start_loss = 4.0 + number
            finder.on_before_backward(trainer, network, torch.tensor(loss / 2))
            finder.on_train_batch_end(trainer, network, None, {}, 2 * step + number)
        above, below = 0.9 * above + 0.1 * sum(losses) / 2, 0.9 * below + 0.1 * 4.5
        assert finder.points[-1] == pytest.approx((0.1, sum(losses) / 2, 4.5, above / below))
    assert trainer.should_stop
    with torch.no_grad():
        network.weight += 1
    finder.on_train_end(trainer, network)
    assert all(torch.equal(weight, finder._start[name]) for name, weight in network.named_parameters())


@pytest.mark.slow
def test_a_run_writes_its_curve_alone_and_restores_the_weights(world, tmp_path):
    model = module(world)
    before = {name: weight.detach().clone() for name, weight in trainable(model).items()}
    finder = RateFinder(20, tmp_path / "lr_find")
    finder.prepare(model)
    trainer = L.Trainer(
        max_steps=20,
        accelerator="cpu",
        use_distributed_sampler=False,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=str(tmp_path),
        callbacks=[finder],
    )
    trainer.fit(model, datamodule=data(world))
    assert all(torch.equal(weight, before[name]) for name, weight in trainable(model).items())
    rates = [LOW * (HIGH / LOW) ** (step / 19) for step in range(len(finder.points))]
    assert [point.rate for point in finder.points] == pytest.approx(rates)
    first, last = finder.points[0], finder.points[-1]
    assert first.loss == pytest.approx(first.start, rel=1e-5), "the first step has the weights of the start"
    assert last.loss != pytest.approx(last.start, rel=1e-3)
    finder.points[:] = curve(lambda x: 1 - 0.5 / (1 + math.exp(-4 * (x + 3))) + max(0.0, x + 1) ** 2)
    finder.finish()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"lr_find.csv", "lr_find.png"}
    rows = list(csv.DictReader((tmp_path / "lr_find" / "lr_find.csv").open()))
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-6)
