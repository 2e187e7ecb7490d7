"""Moves tensors between processes and hosts by NIXL (UCX)."""
