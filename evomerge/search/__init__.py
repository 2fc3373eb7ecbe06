"""Optimizers: vectors in, vectors out, behind one ask/tell contract (base). catalogue lists them."""
