"""The folders of sweeps and their trials, the code that jobs run, and the logs."""
