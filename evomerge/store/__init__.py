"""The run on disk. Modules, in the order a reader wants them:

- ``run_dir``: the folder of one run, its paths and its lock.
- ``events``: what the log says, as frozen dataclasses.
- ``event_log``: the append-only file those events live in; the only truth about a run.
- ``run_state``: what the events add up to: candidates, outcomes, generations, the best.
- ``score_store``: per-document scores of each evaluation.
- ``front_file``: the front and the best recipe, checkpointed.
- ``manifest``: with what the run was made, and what changed since.
- ``optuna_study``, ``study_*``, ``live_projection``, ``dashboard*``: the Optuna study pictures the log.
"""
