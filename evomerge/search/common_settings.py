"""Settings that several optimizers share, each described once. Imports no optimizer library."""

from __future__ import annotations

from evomerge.search.base import Setting

CMA_POPULATION = Setting(
    "population_size", "int_or_auto", "auto", "candidates of a generation; auto = 4 + floor(3 ln genes)", low=4
)
NSGA_POPULATION = Setting(
    "population_size",
    "int_or_auto",
    "auto",
    "candidates of a generation; auto = a tenth of the budget, between 8 and 50",
    low=2,
)
GA_POPULATION = Setting(
    "population_size",
    "int_or_auto",
    "auto",
    "candidates of a generation; auto = half the budget's square root (several objectives: a tenth of it), 8 to 50",
    low=2,
)
GA_INITIAL = Setting(
    "initial",
    "choice",
    "initial",
    "first generation: the space's initial values and mutants of them, random candidates, or half of each",
    choices=("initial", "random", "half"),
)
CMA_SIGMA = Setting(
    "sigma", "float", 1 / 6, "initial standard deviation as a fraction of each gene's range", low=1e-6, high=1
)
CMA_SETTINGS = (
    CMA_POPULATION,
    CMA_SIGMA,
    Setting("restarts", "bool", True, "start again around a random point when converged with budget left"),
    Setting("double_population", "bool", False, "double the population at every restart (IPOP)"),
    Setting("propose_initial", "bool", False, "make the search space's initial values the first candidate"),
)
PROPOSE_INITIAL = Setting("propose_initial", "bool", True, "make the search space's initial values the first candidate")
NUM_INITIAL_RANDOM = Setting(
    "num_initial_random", "int", 10, "random candidates before the model is used", low=1, high=10_000
)
CHECKPOINT_POPULATION = Setting(
    "population_size", "int_or_auto", "auto", "candidates between two checkpoints; changes nothing else", low=1
)
BATCH_POPULATION = Setting(
    "population_size", "int_or_auto", "auto", "candidates proposed before any is learned from; auto = workers", low=1
)


def nsga_settings(crossover_eta: float, crossover_probability: float) -> tuple[Setting, ...]:
    """Settings of NSGA-II and NSGA-III, which differ in the defaults of crossover."""
    return (
        NSGA_POPULATION,
        Setting(
            "crossover_eta",
            "float",
            crossover_eta,
            "distribution index of simulated binary crossover; larger = nearer to the parents",
            low=0,
            high=1000,
        ),
        Setting(
            "crossover_probability",
            "float",
            crossover_probability,
            "chance that a child has two parents",
            low=0,
            high=1,
        ),
        Setting(
            "mutation_eta",
            "float",
            20.0,
            "distribution index of polynomial mutation, which hits each gene with probability 1 / genes",
            low=0,
            high=1000,
        ),
        PROPOSE_INITIAL,
    )
