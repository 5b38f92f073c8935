"""Where jobs run: resources, executors, the state of the cluster."""
