"""Draft's own rewards: one file is one reward is one entry point. They use nothing that a stranger could not use."""
