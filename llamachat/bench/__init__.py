"""Speed, memory and fidelity, ours and the peers', measured in one run: `llamachat bench`.

Every engine runs in a process of its own and does the same work (work.py) in turn with the others, so that a machine whose
speed drifts slows all of them alike; how fast memory can be read is measured in the same turns.
"""
