"""Logits of several members to a class map and a confidence."""
