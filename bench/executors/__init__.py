"""Engines that run cells; each turns a list of cells into records in a store."""
