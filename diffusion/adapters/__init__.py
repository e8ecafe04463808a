"""diffusers networks, pipelines and schedulers, read as denoisers and schedules."""
