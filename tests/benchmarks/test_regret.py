"""The regret benchmark: its arithmetic on invented runs, its worlds, and what its policies keep in them."""

from pathlib import Path
from typing import Any

import pytest

from smartspec_bench.record import Record
from smartspec_bench.regret_report import draw, markdown, overall, regrets
from smartspec_bench.regret_worlds import POINTS, WORLDS, World, run


def invented(mode: str, seed: int, speed: float, phases: list[float], world: str = "load in steps") -> dict[str, Any]:
    """A run as `run` would have left it."""
    return {
        "key": f"{world}/{mode}/{seed}", "world": world, "mode": mode, "seed": seed, "speed": speed, "phases": phases,
        "kept": [int(speed * point) for point in range(1, POINTS + 1)],
    }  # fmt: skip


RUNS = [
    invented("off", 0, 80.0, [50.0, 110.0]),
    invented("off", 1, 82.0, [52.0, 112.0]),
    invented("fixed 4", 0, 100.0, [140.0, 60.0]),
    invented("fixed 4", 1, 100.0, [140.0, 60.0]),
    invented("batch", 0, 90.0, [100.0, 80.0]),
    invented("batch", 1, 90.0, [100.0, 80.0]),
    invented("request", 0, 110.0, [133.0, 111.0]),
    invented("request", 1, 112.0, [133.0, 111.0]),
]


def test_regret_is_held_against_the_best_fixed_length_of_the_whole_and_of_each_phase() -> None:
    """No fixed length is best in both phases; a phase's own best is a harder measure than the best of the whole."""
    request, batch = regrets(RUNS)
    assert (request.fixed, batch.fixed) == ("fixed 4", "fixed 4")
    assert request.middle == pytest.approx(1 - 111 / 100)
    assert batch.middle == pytest.approx(0.1)
    assert request.phases == pytest.approx((1 - 133 / 140, 0.0))
    low, high = request.interval
    assert low <= request.middle <= high < 0


def test_means_are_over_worlds_of_a_kind() -> None:
    """A world counts once, and stationary ones are told from those that change."""
    found = regrets(RUNS + [{**r, "world": "1 client", "speed": r["phases"][0]} for r in RUNS])
    assert overall(found, "request", stationary=True) == pytest.approx(1 - 133 / 140)
    assert overall(found, "request", stationary=False) == pytest.approx(1 - 111 / 100)


def test_tables_and_picture_come_from_a_record(tmp_path: Path) -> None:
    """They name the world, the best length, and whether targets are reached."""
    record = Record(tmp_path / "regret.json", {}, RUNS)
    text = markdown(record)
    draw(record)
    assert "| load in steps | fixed 4 | -11.0 % |" in text
    assert "reached" in text
    assert (tmp_path / "regret.png").stat().st_size > 10_000


def test_every_mode_meets_the_same_requests() -> None:
    """The same seed is the same world: twice the same run, step by step, and another seed is another."""
    first, again, other = (run("4 clients", "request", 8, seed, 0.03) for seed in (1, 1, 2))
    assert first == again
    assert first["kept"] != other["kept"]


def test_phases_cover_an_experiment_that_is_cut_short() -> None:
    """Borders beyond its end are no phases."""
    world = WORLDS["load in steps"]
    assert isinstance(world, World)
    assert world.phases(25.0) == [(0.0, 20.0), (20, 25.0)]


def test_choosing_for_each_request_pays_where_requests_differ() -> None:
    """In the world of easy and hard requests no length for all comes near, or the benchmark shows that."""
    fixed = max(run("easy and hard", "fixed", k, 0, 0.3)["speed"] for k in (1, 2, 3))
    assert run("easy and hard", "request", 8, 0, 0.3)["speed"] > 1.01 * fixed
