"""Recipes: the complete description of a merged model, and the YAML dialects it is read from and written to.

- ``recipe``: the frozen tree and its id. ``validate``: everything wrong with one. ``resolve``: values of one tensor.
- ``recipe_yaml``: files in our own form (documented there) and in mergekit's; ``recipe_reader`` does the own form.
- ``mergekit_yaml``: mergekit's dialect; ``mergekit_reader``, ``mergekit_parameters``, ``mergekit_writer`` and the facts
  of ``mergekit_dialect``.
"""
