"""Hosts: models seen through the access they grant, read without running anybody's code."""
