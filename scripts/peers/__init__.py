"""One module per engine that compare_peers.py runs; each works in a process of its own."""
