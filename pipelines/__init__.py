"""The stages as a versioned graph."""
