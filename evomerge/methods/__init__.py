"""Merge methods: tensors in, one tensor out. Importing this room does not import torch.

- ``base``: what a method is: ``MethodSpec``, ``MergeMethod`` with its two phases.
- ``catalogue``: the specs of all methods, ``get_spec``, ``load_method``.
- ``linear``, ``task_arithmetic``, ``slerp``, ``ties``, ``dare_linear``, ``dare_ties``: one method each.
- ``elementwise``: the passes over memory they share, on a CPU as the loops of ``compiled``.
- ``trim``, ``magnitude_trim``, ``random_trim``: which entries of a task vector are dropped.
- ``cores``: threads; ``sweep``: chunks.
- ``inputs``: checked tensors and numbers.
"""
