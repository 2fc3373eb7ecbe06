"""From models on disk and a recipe to merged weights: in place for the search, streaming to disk for export.

- ``sources``: a recipe's source to a local directory, what is there, and its fingerprint (torch-free).
- ``safetensors_header``: names, shapes and offsets of a safetensors file (torch-free).
- ``checkpoint``: memory-mapped tensors of one model; ``lora``: adapters baked in on the fly.
- ``architecture``: blocks, components and tied tensors of a model, found on the meta device.
- ``model_tensors``: the models of a recipe opened against one architecture, and whether they fit together.
- ``adapted_models``, ``adapted_config``, ``block_places``: models whose result has another depth or other tokens, and
  which block of which model each of its tensors is. ``vocabulary``: its tokenizer and the rows of its embeddings.
- ``tensor_merge``: the one path from (recipe, tensor) to merged values, used in place and on disk.
- ``tensor_threads``: several tensors in work at a time, where that is faster.
- ``live_model``: one model in memory that every candidate is written into.
- ``merge_to_disk``, ``shard_writer``, ``tokenizer_files``, ``model_card``: the same merge as a checkpoint others can
  load; ``parity_merge`` computes it as mergekit does.
"""
