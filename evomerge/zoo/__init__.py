"""Small real models built without a hub, and the documents of their tasks."""
