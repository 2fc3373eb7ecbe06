"""The experiment: its file, its run, resume, baselines and honest finish. Start at run."""
