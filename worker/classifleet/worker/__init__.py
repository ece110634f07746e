"""The worker: fetches, decodes and classifies what producers enqueue. Needs the extra [worker]."""
