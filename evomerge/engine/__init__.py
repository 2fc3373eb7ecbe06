"""The merge engine: sources, checkpoints, architectures, the live model and the merge to disk."""
