"""Recipes: the complete description of a merged model, and the YAML dialects it is read from and written to.

- ``recipe``: the frozen tree and its id. ``validate``: everything wrong with one. ``resolve``: values of one tensor.
- ``recipe_yaml``: files in our own form (documented there) and in mergekit's; ``recipe_reader`` does the own form.
- ``vocabulary_yaml``, ``chat_templates``: tokens and chat template of the merged model.
- ``mergekit_yaml``: mergekit's dialect; read by ``mergekit_reader``, ``mergekit_slices``, ``mergekit_parameters``,
  written by ``mergekit_documents`` and ``mergekit_writer``; the facts of ``mergekit_dialect``.
"""
