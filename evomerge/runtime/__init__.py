"""Workers and executors: where candidates are merged and scored."""
