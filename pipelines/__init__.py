"""Kubeflow pipelines: the graphs of components, compiled, run on this machine, or submitted to a cluster."""
