"""Continue pretraining, or upcycle: a prediction before any run."""
