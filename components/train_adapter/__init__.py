"""train_adapter: a frozen teacher learns to read splats, and its fair control trains beside it."""
