"""A discrete-event simulation of a fleet under different autoscalers; `docs/autoscaling.md` shows what it finds."""
