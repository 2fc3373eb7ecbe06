"""Small real models built without a hub, and the documents of their tasks.

Start with `catalogue` (names, where a built model lies) and `build` (make them). What a model is made from:
`smollm2` (the 135M base out of a PyPI wheel), `lessons` and `sentences` (generated text), `fine_tune` (the training
loop of the experts), `micro` and `micro_lessons` (the million-parameter zoo from scratch), `documents` (lm-eval tasks).
Nothing here is imported by the search itself.
"""
