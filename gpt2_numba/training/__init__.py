"""The parts of the training loop other than the model: settings, schedules, outlier detection, checkpoints, sampling, logs."""
