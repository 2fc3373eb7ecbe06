"""Workers and executors: where candidates are merged and scored.

- ``executor``: the contract of executors, and the plain data that crosses their border. Start here.
- ``worker``: one live model and one prepared fitness; a job goes in, an evaluation comes out.
- ``build``: from settings to a running executor; ``early_ray`` lets Ray start meanwhile.
- ``inline_executor``: in this process.
- ``scheduler``, ``deadlines``, ``worker_pool``: jobs on worker processes, whatever starts those.
- ``ray_executor``: the processes as Ray actors.
- ``resources``: how many workers, threads and GPUs.
- ``signals``, ``isolation``: Ctrl-C and SIGTERM; global state of the process.
"""
