"""Register a scored model; make it the champion if it is better."""
