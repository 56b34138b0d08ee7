"""The course: chapters that explain GPT-2's kernels, exercises, and the check that looks at what the learner wrote."""
