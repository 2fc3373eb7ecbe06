"""Search spaces: which numbers of a recipe are genes. Decode a genotype, encode a recipe.

- ``space``: the contract. ``space_yaml``: presets, files and inline mappings; a new kind is one entry there.
- ``parameter_space``: numbers of a merge method by groups of tensors; its keys are in ``parameter_space_config``, its
  groups in ``groups``, one searched number in ``searched_parameter``, ratios in ``simplex``.
"""
