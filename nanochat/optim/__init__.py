"""Muon for the matrices inside blocks, AdamW for embedding and head, and the schedules of both."""
