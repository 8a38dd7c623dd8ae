"""Explicit forwards and backwards, compiled by Inductor."""
