"""Scoring merged models: fitness files, fixed documents, prepared lm-eval requests, per-document scores.

- ``fitness_yaml``: what a user writes (`FitnessConfig`, `load_fitness`).
- ``documents``: which documents each split scores (`DocumentPlan`, `plan_documents`), decided once on the driver.
- ``evaluator``: the protocol and `build_evaluator`; one evaluator lives in each worker.
- ``task_bank``: the requests of one fitness, prepared once, scored many times.
- ``lm_eval_index``, ``lm_eval_tasks``, ``lm_eval_scorer``: the only files that know lm-eval.
- ``engine_choice``, ``self_check``: which way to score suits the model.
- ``request_plans``, ``packed_choices``, ``two_stage``, ``head_skip``: log-likelihoods in fixed passes.
- ``greedy_decoding``, ``prompt_reading``: generation in fixed blocks.
- ``token_tree``, ``shared_prefix``, ``output_head``: what both use.
- ``python_fitness``: fitness from a user's function.
- ``statistics``: intervals over documents.
"""
