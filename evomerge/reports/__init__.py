"""Tables and summaries, from the store only."""
