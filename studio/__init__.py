"""The application around `core`: workspace, job store, scheduler, workers and the service the page talks to.

Three processes share one SQLite file and one folder: the web process, the scheduler and a worker per running job.
"""
