"""Meshes, sharding rules, hosts, memory plans."""
