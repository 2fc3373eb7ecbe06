"""evomerge: evolutionary search for merges of language models.

Start reading at ``evomerge/experiment/run.py``.
"""

__version__ = "0.1.0"
