"""Recipes: the complete description of a merged model, and the YAML dialects it is read from and written to."""
