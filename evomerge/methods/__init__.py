"""Merge methods: tensors in, one tensor out. One file per method; catalogue lists them without importing torch."""
