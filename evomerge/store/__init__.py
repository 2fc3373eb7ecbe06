"""The run on disk: event log, per-document scores, manifest, front, and the Optuna projection."""
