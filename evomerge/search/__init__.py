"""Optimizers: vectors in, vectors out, behind one ask/tell contract.

- ``base``: the contract, and the plain data it speaks in. Start here.
- ``catalogue``: every optimizer's spec, validation of a user's choice, construction.
- ``cmaes_family``: what ``cma_es``, ``sep_cma``, ``catcma`` and ``xnes`` share: bounds, batches, failures, restarts.
- ``random_search``, ``sobol``: the baselines.
- ``optuna_samplers``: TPE, GP, NSGA-II, NSGA-III.
- ``genetic``: the genetic algorithm, with ``gene_lists`` and ``gene_numbers`` (its operators).
- ``front``, ``scalarise``: several objectives.
- ``gene_box``, ``proposal_ledger``, ``population``, ``single_thread``: coordinates, bookkeeping, sizes, threads.
"""
