"""Search spaces: which numbers of a recipe are genes. Decode a genotype, encode a recipe.

- ``space``: the contract. ``space_yaml``: presets, files and inline mappings; a new kind is one entry there.
- ``parameter_space``: numbers of a merge method by groups of tensors; its keys are in ``parameter_space_config``, its
  groups in ``groups``, one searched number in ``searched_parameter``, ratios in ``simplex``.
- ``data_flow``: paths through blocks of models; its keys are in ``data_flow_config``, models and units of blocks in
  ``block_pool``, scales in ``hop_scales``, one encoding each in ``indicator``, ``integration``, ``hop_sequence``,
  ``slices`` and ``layer_swap_route``.
- ``joint_space``: both at once; its keys are in ``joint_config``.
"""
