"""Helpers of the test suite: deployments in this process and in children, checkpoints, HTTP by hand."""
