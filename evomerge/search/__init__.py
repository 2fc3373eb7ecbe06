"""Optimizers: vectors in, vectors out, behind one ask/tell contract.

- ``base``: the contract, and the plain data it speaks in. Start here.
- ``catalogue``: every optimizer's spec, validation of a user's choice, construction.
- ``cmaes_family``: what ``cma_es``, ``sep_cma``, ``catcma`` and ``xnes`` share: bounds, batches, failures, restarts.
- ``random_search``, ``sobol``: the baselines.
- ``optuna_samplers``: TPE, GP, NSGA-II, NSGA-III.
- ``genetic``: the genetic algorithm, with ``gene_lists`` and ``gene_numbers`` (its operators).
- ``pso``, ``model_swarms`` (both on ``swarm``), ``genome``, ``evogm`` (with ``cycle_generators``): published for
  merging experts; ``swarm_start`` is where they begin.
- ``cma_pareto``, ``como_catcma``, ``map_elites``, ``cycleqd``: several objectives; the last two share ``elite_search``,
  ``elite_archive`` and ``variation``.
- ``front``, ``total_order``, ``uncrowded``, ``scalarise``: arithmetic of several objectives.
- ``anchors``, ``calibration``, ``feasibility``: normalised scores and constraints.
- ``gene_box``, ``proposal_ledger``, ``population``, ``single_thread``: coordinates, bookkeeping, sizes, threads.
"""
