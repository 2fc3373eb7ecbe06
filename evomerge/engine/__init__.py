"""From models on disk and a recipe to merged weights: in place for the search, streaming to disk for export.

- ``sources``: a recipe's source to a local directory, what is there, and its fingerprint (torch-free).
- ``safetensors_header``: names, shapes and offsets of a safetensors file (torch-free).
- ``checkpoint``: memory-mapped tensors of one model; ``lora``: adapters baked in on the fly.
- ``architecture``: blocks, components and tied tensors of a model, found on the meta device or from its files, and kept
  (``architecture_cache``);
  ``block_stacks`` and ``components`` find them; ``stored_layout`` is how a checkpoint holds them on disk.
- ``model_tensors``: the models of a recipe opened against one architecture, and whether they fit together
  (``fit_problems`` says why not); ``model_parts``: a model that is one part of a larger one.
- ``adapted_models``, ``adapted_config``, ``block_places``: models whose result has another depth or other tokens, and
  which block of which model each of its tensors is. ``vocabulary``: its tokenizer and the rows of its embeddings.
- ``tensor_merge``: the one path from (recipe, tensor) to merged values, used in place and on disk; ``merge_plan``: a
  merge made ready for many tensors; ``surveys``: passes over whole models; ``present_models``: the merge of a tensor
  that some models lack.
- ``tensor_threads``: several tensors in work at a time, where that is faster.
- ``live_model``: one model in memory that every candidate is written into.
- ``merge_to_disk``: the same merge as a checkpoint others can load; ``parity_merge`` computes it as mergekit does.
  ``output_plan``: what it holds; ``shard_writer``, ``tokenizer_files``: its files; ``output_directory``: whole or not
  at all, and resumable; ``provenance``, ``model_card``: what it says of itself; ``blame``: where a NaN came from.
- ``export_forms``: in which form a route is written. ``folding``: its scales put into weights, with the help of
  ``residual_anatomy`` (what in a block reads and writes the residual stream; ``probe_model``, ``stream_watch``).
  ``compact_route``: each block stored once, with model code that runs the hops.
- ``merge_to_adapter``, ``low_rank``: a merge of LoRA adapters as an adapter.
"""
