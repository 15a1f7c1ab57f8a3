"""The oracle: runs the steps of a parity case on Python PEFT and writes down what it computes."""
