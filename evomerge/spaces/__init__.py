"""Search spaces: what may vary. A space decodes a genotype to a recipe and encodes it back."""
