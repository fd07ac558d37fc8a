"""Stage one in the loop: several simulated replicas, the real policy, the real tuning, and an objective to keep.

The replicas' world is not the policy's own model (measured stair curves, noise, stragglers). The clock is simulated.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from fleets import histogram, later, load, replica, seen, smartspec
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec.policy.simulate import Replica, Trace
from smartspec.policy.worlds import Device, Shape, Texts
from smartspec_operator import tuning
from smartspec_operator.world import History

KEY = "cpu/float32/simulated"
WINDOW_SECONDS = 20.0
TUNING_SECONDS = 5.0
TPOT_SECONDS = 0.06
SHAPE = Shape(prompt_tokens=64, output_tokens=64)


@dataclass
class SimulatedFleet:
    """Replicas under a closed loop of clients, *concurrency* for each."""

    concurrency: int
    replicas: list[Replica] = field(default_factory=list)
    submitted: int = 0

    def grow(self, settings: PolicySettings, device: Device) -> None:
        """Add a replica that starts with *settings*."""
        policy = SpeculationPolicy(settings, key=KEY)
        self.replicas.append(Replica(policy, device, Texts(), seed=len(self.replicas), max_num_seqs=64))

    def run(self, until: float) -> None:
        """Let every replica's clock pass *until*."""
        for simulated in self.replicas:
            while simulated.now < until:
                while simulated.num_requests < self.concurrency:
                    simulated.submit(SHAPE.arrival(self.submitted, simulated.now, seed=11))
                    self.submitted += 1
                assert simulated.step() is not None

    def reports(self) -> list[LoadReport]:
        """What each replica says of its last window."""
        return [self._report(simulated) for simulated in self.replicas]

    def _report(self, simulated: Replica) -> LoadReport:
        window = simulated.trace.between(simulated.now - WINDOW_SECONDS, simulated.now + 1)
        finished = window.finished
        return load(
            tokens_per_second=sum(step.tokens_kept for step in window.steps) / WINDOW_SECONDS,
            requests_per_second=len(finished) / WINDOW_SECONDS,
            mean_output=float(np.mean([f.arrival.output_tokens for f in finished])) if finished else 0.0,
            generation=simulated.policy.settings.generation,
            window_seconds=WINDOW_SECONDS,
            num_requests_running=len(simulated.running),
            num_requests_waiting=len(simulated.waiting),
            tpot=histogram(*(f.tpot for f in finished)),
            priors=simulated.policy.priors(),
        )

    def attainment(self, start: float, end: float) -> float:
        """The share of requests of all replicas that started after *start* and kept the objective."""
        kept = [
            f.tpot <= TPOT_SECONDS
            for simulated in self.replicas
            for f in simulated.trace.between(start, end).finished
            if f.first_token_time >= start
        ]
        assert len(kept) > 50
        return float(np.mean(kept))


def tuned(fleet: SimulatedFleet, start: float, end: float, past: History, **spec: Any) -> History:
    """Run stage one over *fleet* from *start* to *end*, pushing what it decides; the history it leaves."""
    owner, now = smartspec(**spec), start
    while now < end:
        now += TUNING_SECONDS
        fleet.run(now)
        world = seen(*(replica(f"r{index}", report) for index, report in enumerate(fleet.reports())))
        decision = tuning.decide(owner, world, past, now=later(now))
        past = History(settings=decision.settings, tuning=decision.state)
        pushed = msgspec.structs.replace(decision.settings, priors=None)
        for simulated in fleet.replicas:
            if simulated.policy.settings.generation < pushed.generation:
                simulated.policy.apply(pushed)
    return past


PLAIN = Device()
STRAGGLING = Device(straggler_share=0.05)


def test_stage_one_restores_an_objective_that_the_engine_alone_misses() -> None:
    """What serves the most tokens breaks the objective for most requests; tuning keeps it with the same replicas."""
    fleet = SimulatedFleet(concurrency=40)
    for _ in range(2):
        fleet.grow(PolicySettings(), PLAIN)
    fleet.run(40.0)
    assert fleet.attainment(10.0, 40.0) < 0.3
    tuned(fleet, 40.0, 140.0, History(), slo={"tpotSeconds": TPOT_SECONDS})
    assert fleet.attainment(80.0, 140.0) >= 0.95
    assert len(fleet.replicas) == 2


def test_stage_one_corrects_predictions_that_are_too_hopeful() -> None:
    """Steps that now and then take six times as long break an objective that every prediction keeps."""
    hopeful, corrected = SimulatedFleet(concurrency=40), SimulatedFleet(concurrency=40)
    hopeful.grow(PolicySettings(tpot_target_seconds=TPOT_SECONDS), STRAGGLING)
    hopeful.run(60.0)
    assert hopeful.attainment(20.0, 60.0) < 0.8
    for _ in range(2):
        corrected.grow(PolicySettings(), STRAGGLING)
    past = tuned(corrected, 0.0, 140.0, History(), slo={"tpotSeconds": TPOT_SECONDS})
    assert corrected.attainment(80.0, 140.0) >= 0.95
    assert past.tuning.tpot_factor < 1.0


def test_a_new_replica_that_is_handed_the_fleets_priors_predicts_twice_as_well() -> None:
    """In its first 20 steps it errs at most half as much as one that starts cold."""
    fleet = SimulatedFleet(concurrency=16)
    for _ in range(2):
        fleet.grow(PolicySettings(), PLAIN)
    fleet.run(30.0)
    past = tuned(fleet, 30.0, 35.0, History())
    assert past.settings is not None
    errors = []
    for settings in (past.settings, PolicySettings()):
        newcomer = SimulatedFleet(concurrency=16)
        newcomer.grow(settings, PLAIN)
        newcomer.run(3.0)
        errors.append(Trace(newcomer.replicas[0].trace.steps[:20]).time_error)
    handed, cold = errors
    assert handed <= 0.5 * cold
