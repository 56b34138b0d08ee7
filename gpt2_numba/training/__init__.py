"""What the training loop stands on besides the model: settings, schedules, outlier detector, sampler and log."""
