"""The oracle: runs the steps of a parity case with Python PEFT and records what it computes."""
