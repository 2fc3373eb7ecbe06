"""Merge methods: tensors in, one tensor out. Importing this room does not import torch.

- ``base``: what a method is: ``MethodSpec``, ``MergeMethod`` with its two phases.
- ``catalogue``: the specs of all methods, ``get_spec``, ``load_method``.
- ``linear``, ``task_arithmetic``, ``ties``, ``dare_linear``, ``dare_ties``, ``breadcrumbs``, ``magmax``,
  ``emr``, ``consensus``, ``ram``, ``nearswap``: element by element.
- ``slerp``, ``nuslerp``, ``multislerp``, ``karcher``, ``model_stock``, ``varm``: weigh whole tensors by their inner
  products, from ``gram``.
- ``elementwise``: the passes over memory the methods share, on a CPU as the loops of ``compiled``.
- ``trim``, ``magnitude_trim``, ``random_trim``: which entries of a task vector are dropped.
- ``cores``: threads; ``sweep``: chunks.
- ``inputs``: checked tensors and numbers.
"""
