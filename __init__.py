"""feynkac: probabilistic programming for LLM inference.

Generation is a state-space program: its steps are language-model or diffusion transitions, its likelihoods are
reward models, and one set of inference engines runs over them all.

    import feynkac as fk

    @fk.program
    async def haiku(lm, judge, topic):
        text = lm.prompt(f"Write a haiku about {topic}.")
        for i in range(3):
            text = await fk.sample("line", lm.line(text))
            await fk.factor("judge", judge(text).log())
        return text

    posterior = fk.infer(haiku(lm, judge, "rivers"), fk.SMC(32), seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import diffusion, models
from .models import constraints, programs, rewards, tasks
from .ppl import errors, keys
from .ppl.combine import combine
from .ppl.cost import Budget, Cost, charge
from .ppl.distributions import dist
from .ppl.distributions.induced import induced
from .ppl.errors import FeynkacError
from .ppl.exact import oracles
from .ppl.exact.enumeration import Enumeration, enumerate_program
from .ppl.lazy import find
from .ppl.memory import afresh
from .ppl.model import Advance, Draws, FeynmanKac, Kernel
from .ppl.program import Program, program
from .ppl.running.cells import cell
from .ppl.running.nesting import nested
from .ppl.score import Reward, Score, reward
from .ppl.sites import Site
from .ppl.transforms import handlers
from .ppl.transforms.blocks import Blocks
from .ppl.transforms.params import estimator, param
from .ppl.transforms.simulation import Simulation, simulate
from .ppl.words import batched, call, deterministic, factor, gather, observe, race, sample, scan, twist

if TYPE_CHECKING:
    from .inference import plots, scaling, tuning
    from .inference.base.engine import Engine
    from .inference.base.paths import MarkovKernel
    from .inference.base.step import Step
    from .inference.calibration.calibrate import calibrate
    from .inference.calibration.calibration import Calibration
    from .inference.comparison.bounds import bounds
    from .inference.comparison.compare import compare
    from .inference.comparison.table import Comparison
    from .inference.infer import infer, steps
    from .inference.journal.journal import Journal
    from .inference.mcmc.mcmc import MCMC
    from .inference.mcmc.parallel_tempering import ParallelTempering
    from .inference.mcmc.particle_gibbs import ParticleGibbs
    from .inference.mcmc.power_sampling import PowerSampling
    from .inference.mcmc.suffix_mh import SuffixMH
    from .inference.moves.elliptical_slice import EllipticalSlice
    from .inference.moves.hmc import HMC
    from .inference.moves.langevin import Langevin
    from .inference.moves.mala import MALA
    from .inference.moves.nuts import NUTS
    from .inference.moves.pcn import PCN
    from .inference.moves.pcnl import PCNL
    from .inference.moves.random_walk import RandomWalk
    from .inference.moves.sweep import Sweep
    from .inference.particles.entropic import EntropicParticleFilter
    from .inference.particles.importance import ImportanceSampling
    from .inference.particles.look_ahead import LookAheadSMC
    from .inference.particles.particle_filter import ParticleFilter
    from .inference.particles.path_search import PathSearch
    from .inference.particles.power_smc import PowerSMC
    from .inference.particles.reducing import Reduce
    from .inference.particles.rejection import RejectionSMC
    from .inference.particles.rollover import RolloverBudget
    from .inference.particles.smc import SMC
    from .inference.particles.smc_steer import SMCSteer
    from .inference.particles.svdd import SVDD
    from .inference.plots.report import report
    from .inference.pools.adaptive_best_of_n import AdaptiveBestOfN
    from .inference.pools.adaptive_consistency import AdaptiveConsistency
    from .inference.pools.best_of_n import BestOfN
    from .inference.pools.first_finish import FirstFinish
    from .inference.pools.self_consistency import SelfConsistency
    from .inference.results.linear_twist import LinearTwist
    from .inference.results.posterior import Posterior
    from .inference.scaling.allocate import allocate
    from .inference.scaling.diagnose import diagnose
    from .inference.scaling.diagnosis import Diagnosis
    from .inference.search.a_star import AStar
    from .inference.search.beam_search import BeamSearch
    from .inference.search.dvts import DVTS
    from .inference.search.mcts import MCTS
    from .inference.search.noise_search import NoiseSearch
    from .inference.search.rebase import Rebase
    from .inference.search.tree_of_frames import TreeOfFrames
    from .inference.search.tree_sampling import TreeSampling
    from .inference.search.tree_search import TreeSearch
    from .inference.session import Session
    from .inference.smoothing.smooth import smooth
    from .inference.smoothing.smoothed import Smoothed
    from .inference.tempering.hit_and_run_slice import HitAndRunSlice
    from .inference.tempering.nested_sampling import NestedSampling
    from .inference.tempering.persistent import PersistentSampling
    from .inference.tempering.tempered import TemperedSMC
    from .inference.tempering.waste_free import WasteFreeSMC
    from .inference.tuning.settings import tune
    from .inference.variational.fit import fit
    from .inference.variational.guide import Guide
    from .inference.variational.objectives.elbo import ELBO
    from .inference.variational.objectives.forward_kl import ForwardKL
    from .inference.variational.objectives.hvi import HVI
    from .inference.variational.objectives.iwae import IWAE
    from .inference.variational.objectives.qwake import QWake
    from .inference.variational.transformer import DistributionTransformer
    from .inference.watch import watch
    from .inference.workers.folder import Posteriors
    from .inference.workers.pool import InProcess
    from .inference.workers.ray import Ray
    from .ppl.bridges.from_numpyro import from_numpyro
    from .ppl.bridges.to_numpyro import to_numpyro

__version__ = "0.2.0"

__all__ = [
    "DVTS",
    "ELBO",
    "HMC",
    "HVI",
    "IWAE",
    "MALA",
    "MCMC",
    "MCTS",
    "NUTS",
    "PCN",
    "PCNL",
    "SMC",
    "SVDD",
    "AStar",
    "AdaptiveBestOfN",
    "AdaptiveConsistency",
    "Advance",
    "BeamSearch",
    "BestOfN",
    "Blocks",
    "Budget",
    "Calibration",
    "Comparison",
    "Cost",
    "Diagnosis",
    "DistributionTransformer",
    "Draws",
    "EllipticalSlice",
    "Engine",
    "EntropicParticleFilter",
    "Enumeration",
    "FeynkacError",
    "FeynmanKac",
    "FirstFinish",
    "ForwardKL",
    "Guide",
    "HitAndRunSlice",
    "ImportanceSampling",
    "InProcess",
    "Journal",
    "Kernel",
    "Langevin",
    "LinearTwist",
    "LookAheadSMC",
    "MarkovKernel",
    "NestedSampling",
    "NoiseSearch",
    "ParallelTempering",
    "ParticleFilter",
    "ParticleGibbs",
    "PathSearch",
    "PersistentSampling",
    "Posterior",
    "Posteriors",
    "PowerSMC",
    "PowerSampling",
    "Program",
    "QWake",
    "RandomWalk",
    "Ray",
    "Rebase",
    "Reduce",
    "RejectionSMC",
    "Reward",
    "RolloverBudget",
    "SMCSteer",
    "Score",
    "SelfConsistency",
    "Session",
    "Simulation",
    "Site",
    "Smoothed",
    "Step",
    "SuffixMH",
    "Sweep",
    "TemperedSMC",
    "TreeOfFrames",
    "TreeSampling",
    "TreeSearch",
    "WasteFreeSMC",
    "afresh",
    "allocate",
    "batched",
    "bounds",
    "calibrate",
    "call",
    "cell",
    "charge",
    "combine",
    "compare",
    "constraints",
    "deterministic",
    "diagnose",
    "diffusion",
    "dist",
    "enumerate_program",
    "errors",
    "estimator",
    "factor",
    "fit",
    "from_numpyro",
    "gather",
    "handlers",
    "induced",
    "infer",
    "keys",
    "models",
    "nested",
    "observe",
    "oracles",
    "param",
    "plots",
    "program",
    "programs",
    "race",
    "report",
    "reward",
    "rewards",
    "sample",
    "scaling",
    "scan",
    "simulate",
    "smooth",
    "steps",
    "tasks",
    "to_numpyro",
    "tune",
    "tuning",
    "twist",
    "watch",
]

_HOME = {
    "AStar": "inference.search.a_star",
    "AdaptiveBestOfN": "inference.pools.adaptive_best_of_n",
    "AdaptiveConsistency": "inference.pools.adaptive_consistency",
    "BeamSearch": "inference.search.beam_search",
    "BestOfN": "inference.pools.best_of_n",
    "Calibration": "inference.calibration.calibration",
    "Comparison": "inference.comparison.table",
    "DVTS": "inference.search.dvts",
    "Diagnosis": "inference.scaling.diagnosis",
    "ELBO": "inference.variational.objectives.elbo",
    "DistributionTransformer": "inference.variational.transformer",
    "EllipticalSlice": "inference.moves.elliptical_slice",
    "Engine": "inference.base.engine",
    "EntropicParticleFilter": "inference.particles.entropic",
    "FirstFinish": "inference.pools.first_finish",
    "ForwardKL": "inference.variational.objectives.forward_kl",
    "Guide": "inference.variational.guide",
    "HVI": "inference.variational.objectives.hvi",
    "IWAE": "inference.variational.objectives.iwae",
    "HMC": "inference.moves.hmc",
    "HitAndRunSlice": "inference.tempering.hit_and_run_slice",
    "ImportanceSampling": "inference.particles.importance",
    "InProcess": "inference.workers.pool",
    "Langevin": "inference.moves.langevin",
    "Journal": "inference.journal.journal",
    "LinearTwist": "inference.results.linear_twist",
    "LookAheadSMC": "inference.particles.look_ahead",
    "MALA": "inference.moves.mala",
    "MCMC": "inference.mcmc.mcmc",
    "MCTS": "inference.search.mcts",
    "MarkovKernel": "inference.base.paths",
    "NUTS": "inference.moves.nuts",
    "NestedSampling": "inference.tempering.nested_sampling",
    "NoiseSearch": "inference.search.noise_search",
    "PCN": "inference.moves.pcn",
    "PCNL": "inference.moves.pcnl",
    "ParallelTempering": "inference.mcmc.parallel_tempering",
    "ParticleFilter": "inference.particles.particle_filter",
    "ParticleGibbs": "inference.mcmc.particle_gibbs",
    "PathSearch": "inference.particles.path_search",
    "PersistentSampling": "inference.tempering.persistent",
    "Posterior": "inference.results.posterior",
    "Posteriors": "inference.workers.folder",
    "PowerSMC": "inference.particles.power_smc",
    "PowerSampling": "inference.mcmc.power_sampling",
    "RandomWalk": "inference.moves.random_walk",
    "Ray": "inference.workers.ray",
    "QWake": "inference.variational.objectives.qwake",
    "Rebase": "inference.search.rebase",
    "Reduce": "inference.particles.reducing",
    "RejectionSMC": "inference.particles.rejection",
    "RolloverBudget": "inference.particles.rollover",
    "SMC": "inference.particles.smc",
    "SMCSteer": "inference.particles.smc_steer",
    "SVDD": "inference.particles.svdd",
    "SelfConsistency": "inference.pools.self_consistency",
    "Session": "inference.session",
    "Smoothed": "inference.smoothing.smoothed",
    "Step": "inference.base.step",
    "SuffixMH": "inference.mcmc.suffix_mh",
    "Sweep": "inference.moves.sweep",
    "TemperedSMC": "inference.tempering.tempered",
    "TreeOfFrames": "inference.search.tree_of_frames",
    "TreeSampling": "inference.search.tree_sampling",
    "TreeSearch": "inference.search.tree_search",
    "WasteFreeSMC": "inference.tempering.waste_free",
    "allocate": "inference.scaling.allocate",
    "bounds": "inference.comparison.bounds",
    "calibrate": "inference.calibration.calibrate",
    "compare": "inference.comparison.compare",
    "diagnose": "inference.scaling.diagnose",
    "from_numpyro": "ppl.bridges.from_numpyro",
    "fit": "inference.variational.fit",
    "infer": "inference.infer",
    "report": "inference.plots.report",
    "smooth": "inference.smoothing.smooth",
    "steps": "inference.infer",
    "to_numpyro": "ppl.bridges.to_numpyro",
    "tune": "inference.tuning.settings",
    "watch": "inference.watch",
}


def __getattr__(name: str) -> Any:
    if name in ("plots", "scaling", "tuning"):
        return import_module(f".inference.{name}", __name__)
    return find(__name__, _HOME, name, "all")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
