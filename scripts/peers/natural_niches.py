"""The digits experiment from scratch by the functions of M2N2's authors, compiled into one loop: one JSON line a run.

python scripts/peers/natural_niches.py CLONE [--method m2n2 ga] [--runs 20] [--seed 100] [--passes 5000]

CLONE is a clone of github.com/SakanaAI/natural_niches. It imports nothing of evomerge; it needs jax, optax, tqdm and
scikit-learn. The authors' own loop calls each function from Python and scores the test digits after every pass; here
passes 1 to 500, to 1,000, ... are one compiled call each, with the same draws from the same keys.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
ARCHIVE, STEPS = 20, (500, 1000, 2000, 5000, 10000, 50000)
METHODS = {"m2n2": (1.0, True), "ga": (0.0, False)}  # alpha, matchmaker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone")
    parser.add_argument("--method", nargs="*", choices=list(METHODS), default=["m2n2"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--passes", type=int, default=5000)
    given = parser.parse_args()
    sys.path.insert(0, given.clone)
    for method in given.method:
        run_one = compiled(*METHODS[method], given.passes)
        for seed in range(given.seed, given.seed + given.runs):
            print(json.dumps({"method": method, "seed": seed, **run_one(seed)}), flush=True)


def compiled(alpha: float, matchmaker: bool, passes: int):
    import jax
    import jax.numpy as jnp
    from data import load_data
    from helper_fn import crossover, mutate
    from model import get_acc, mlp, num_params
    from natural_niches_fn import sample_parents, update_archive

    (images, labels), (test_images, test_labels) = [[jnp.array(part) for part in split] for split in load_data()]

    def correct(parameters):
        return jnp.argmax(mlp(parameters, images), axis=1) == labels

    def one_pass(_, state):
        key, archive, scores = state
        for_parents, for_crossover, for_noise, key = jax.random.split(key, 4)
        parents = sample_parents(archive, scores, for_parents, alpha, matchmaker)
        child = mutate(crossover(parents, for_crossover), for_noise)
        return (key, *update_archive(correct(child), child, archive, scores, alpha))

    @jax.jit
    def many(state, count):
        return jax.lax.fori_loop(0, count, one_pass, state)

    def run_one(seed: int) -> dict[str, object]:
        key, *seeds = jax.random.split(jax.random.PRNGKey(seed), 3)
        archive, scores = jnp.zeros([ARCHIVE, num_params]), jnp.zeros([ARCHIVE, len(labels)], dtype=bool)
        for drawn in seeds:
            member = jax.random.normal(drawn, (num_params,)) * 0.01
            archive, scores = update_archive(correct(member), member, archive, scores, alpha)
        state, done, rows = many((key, archive, scores), 0), 0, []  # compiles before the clock starts
        cpu = time.process_time()
        for until in [step for step in STEPS if step <= passes]:
            state, done = many(state, until - done), until
            train = state[2].mean(axis=1)
            best = state[1][train.argmax()]
            test = float(get_acc(mlp(best, test_images), test_labels))
            rows.append({"passes": until, "test": round(100 * test, 2), "train": round(100 * float(train.max()), 2)})
        return {"steps": rows, "cpu_ms": round(1000 * (time.process_time() - cpu) / done, 3)}

    return run_one


if __name__ == "__main__":
    main()
